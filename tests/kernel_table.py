"""The table of what the CUDA kernels cost, in docs/kernels.md between two markers: `python tests/kernel_table.py`.

With --write it puts the present numbers there. tests/test_cuda_build.py holds it true. To see the loops behind the
numbers, instruction by instruction: --loops.
"""

import argparse
import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from cubin import Block, Loop, Usage, cheapest_loop, compiler_version, describe, disassemble, usage

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "fastcodec_rans_"

T = TypeVar("T")


@dataclass(frozen=True)
class Section:
    """What stands in a document between two markers of a name."""

    name: str
    document: Path = ROOT / "docs" / "kernels.md"

    def read(self) -> str:
        return self._parts()[1].strip("\n") + "\n"

    def write(self, text: str) -> None:
        before, _, after = self._parts()
        self.document.write_text(f"{before}\n\n{text}\n{after}", encoding="utf-8")

    def _parts(self) -> tuple[str, str, str]:
        """The text up to the first marker, between the two, and from the second one on."""
        text = self.document.read_text(encoding="utf-8") if self.document.exists() else ""
        parts = re.fullmatch(rf"(.*<!-- {self.name}:begin -->)(.*)(<!-- {self.name}:end -->.*)", text, re.DOTALL)
        if parts is None:
            raise ValueError(f"{self.document} lacks its markers of {self.name}")
        return parts[1], parts[2], parts[3]


SECTION = Section("kernels")


@dataclass(frozen=True)
class Marked:
    """A loop of some kernels, by what each of its rounds has; `limit`: instructions it may take at most."""

    name: str
    kernels: tuple[str, ...]
    through: Mapping[str, int]
    limit: int | None = None


# A step takes a bucket from shared memory (8 bytes), votes whether a lane missed it and which lanes need a word,
# shuffles words, and stores. Dense kernels also fetch an index and turn an earlier one into its place; skipping ones
# take both from the queue; what they spend on filling it is not in their step.
_STEP = {"SHFL": 1, "LDS.64": 1, "LDS": 2, "VOTE": 2}
LOOPS = (
    Marked("step", ("decode_full_dense",), {**_STEP, "LDG|LD": 1, "STG|ST": 1}, limit=64),
    Marked("step", ("decode_mixed_dense",), {**_STEP, "LDG|LD": 1, "STG|ST": 1}),
    Marked("step", ("decode_full_skip",), {**_STEP, "STG|ST": 1}, limit=64),
    Marked("step", ("decode_mixed_skip",), {**_STEP, "STG|ST": 1}),
    # Three blocks of 32 elements: coded ones are queued, the others written.
    Marked("fill", ("decode_full_skip",), {"VOTE": 3, "STS": 3, "STG|ST": 3, "LDG|LD": 3}),
    # A round of the search in a mixture: a value of Phi for each component.
    Marked("round", ("decode_mixtures_full_3", "decode_mixtures_mixed_3"), {"LDS": 3}),
    Marked("round", ("decode_mixtures_full_4", "decode_mixtures_mixed_4"), {"LDS": 4}),
    # The division by a frequency begins with a reciprocal.
    Marked("step", ("encode_dense", "encode_skip"), {"MUFU": 1, "VOTE": 2, "LD|LDS": 3}),
)


@cache
def build_module() -> ModuleType:
    """kernels/build.py of this checkout."""
    spec = importlib.util.spec_from_file_location("kernels_build", ROOT / "kernels" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def usage_by_kernel(image: Path) -> dict[str, dict[int, Usage]]:
    return _by_kernel(usage(image))


def loops_by_kernel(image: Path) -> dict[tuple[str, str], dict[int, Loop]]:
    """Every loop of LOOPS, by (kernel, loop), then by target."""
    kernels = _by_kernel(disassemble(image))
    return {
        (kernel, marked.name): {target: _loop(kernel, target, marked, blocks) for target, blocks in versions.items()}
        for marked in LOOPS
        for kernel in marked.kernels
        for versions in (kernels[kernel],)
    }


def _loop(kernel: str, target: int, marked: Marked, blocks: list[Block]) -> Loop:
    try:
        return cheapest_loop(blocks, Counter(marked.through))
    except ValueError as error:
        raise ValueError(f"{kernel} sm_{target}: {error}. Has its {marked.name} changed? See LOOPS.") from None


def limits() -> dict[tuple[str, str], int]:
    return {(kernel, marked.name): marked.limit for marked in LOOPS if marked.limit for kernel in marked.kernels}


def _by_kernel(found: Mapping[tuple[str, int], T]) -> dict[str, dict[int, T]]:
    kernels: dict[str, dict[int, T]] = {}
    for kernel, target in sorted(found):
        kernels.setdefault(kernel.removeprefix(PREFIX), {})[target] = found[kernel, target]
    return kernels


def table(image: Path) -> str:
    """The text between the markers."""
    kernels = usage_by_kernel(image)
    targets = sorted({target for versions in kernels.values() for target in versions})
    columns: dict[str, Callable[[Usage], int]] = {
        "threads": lambda use: use.threads,
        "registers": lambda use: use.registers,
        "stack, bytes": lambda use: use.stack,
        "static shared memory, bytes": lambda use: use.shared,
    }
    resources = [["kernel", *columns]]
    for kernel, versions in kernels.items():
        resources.append(
            [f"`{kernel}`", *(numbers(value(use) for use in versions.values()) for value in columns.values())]
        )
    loops = [["kernel", "loop", "instructions", "limit"]]
    for (kernel, name), versions in sorted(loops_by_kernel(image).items()):
        counts = numbers(len(loop.instructions) for loop in versions.values())
        loops.append([f"`{kernel}`", name, counts, str(limits().get((kernel, name), ""))])
    names = ", ".join(f"sm_{target}" for target in targets)
    return (
        f"nvcc {compiler_version(image)}, for {names} in this order; one number where all are equal.\n\n"
        f"{markdown(resources)}\n\n{markdown(loops)}\n"
    )


def numbers(values) -> str:
    values = list(values)
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{SECTION.document.name}")
    parser.add_argument("--loops", action="store_true", help="print each loop's blocks and opcodes instead")
    arguments = parser.parse_args()
    build = build_module()
    if build.image_compiler() is None:
        print("kernel_table.py: no nvcc that builds the image", file=sys.stderr)
        return 1
    build.build()
    image = build.cuda_image_path()
    if arguments.loops:
        for (kernel, name), versions in loops_by_kernel(image).items():
            for target, loop in versions.items():
                print(f"{kernel} sm_{target}, {name}: {len(loop.instructions)} instructions\n{describe(loop)}")
    elif arguments.write:
        SECTION.write(table(image))
    else:
        print(table(image), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
