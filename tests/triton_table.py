"""The table of what the Triton kernels cost, in docs/kernels.md between two markers: `python tests/triton_table.py`.

With --write it puts the present numbers there. tests/test_triton_build.py holds it true. Every launch that a `builds()`
of kernels/triton names is compiled ahead of time for each target, which needs no GPU.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cubin import tool
from kernel_table import Section, markdown, numbers

ROOT = Path(__file__).resolve().parents[1]
SECTION = Section("triton")
TARGETS = (80, 90, 100)
#: PTX instructions that run on tensor cores: of a warp, of four warps (sm_90), of the tensor memory (sm_100).
TENSOR_CORES = ("mma.sync", "wgmma", "tcgen05.mma")


@dataclass(frozen=True)
class Cost:
    """What one build takes on one target: of a thread, registers and bytes of stack (what it spills); of a program,
    warps and bytes of shared memory; and the tensor core instructions in its PTX."""

    module: str
    name: str
    target: int
    warps: int
    registers: int
    stack: int
    shared: int
    tensor_cores: tuple[str, ...]


def costs() -> list[Cost]:
    """Every build of kernels/triton on every target, compiled by another process.

    A kernel that was decorated in Triton's interpreter, as in the tests' process, cannot be compiled.
    """
    # That process finds this folder's modules, as this one does, and nothing is interpreted in it.
    left_out = ("TRITON_INTERPRET", "PYTHONSAFEPATH")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment["TRITON_CACHE_DIR"] = str(ROOT / "build" / "triton")
    command = [sys.executable, __file__, "--json"]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [Cost(**{**item, "tensor_cores": tuple(item["tensor_cores"])}) for item in json.loads(run.stdout)]


def triton_version() -> str:
    return importlib.metadata.version("triton")


def table(found: Sequence[Cost]) -> str:
    """The text between the markers."""
    rows = [["kernel", "launch", "warps", "registers", "stack, bytes", "shared memory, bytes", "tensor cores"]]
    kinds = sorted({(cost.module, cost.name) for cost in found})
    for module, name in kinds:
        versions = [cost for cost in found if (cost.module, cost.name) == (module, name)]
        rows.append(
            [
                f"`{module}.py`",
                name,
                *(numbers(getattr(v, field) for v in versions) for field in ("warps", "registers", "stack", "shared")),
                numbers(" + ".join(v.tensor_cores) or "none" for v in versions),
            ]
        )
    targets = ", ".join(f"sm_{target}" for target in TARGETS)
    return (
        f"Triton {triton_version()}, for {targets} in this order; one entry where all are equal. Launches are those of "
        f"the released model.\nRegisters and stack (what does not fit in registers) are a thread's, warps and shared "
        f"memory a program's.\n\n{markdown(rows)}\n"
    )


def _compiled() -> Iterator[Cost]:
    package = importlib.import_module("fastcodec.kernels.triton")
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        builds = getattr(importlib.import_module(f"{package.__name__}.{module}"), "builds", None)
        for build in builds() if builds else ():
            for target in TARGETS:
                yield _compile(module, build, target)


def _compile(module: str, build, target: int) -> Cost:
    """build: a `Build` of kernels/triton/common.py."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {name: "constexpr" if name in build.constants else build.signature[name] for name in names}
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") and n not in build.unaligned]
    source = ASTSource(
        fn=build.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in build.constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": build.warps, **build.options}
    try:
        made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    except Exception as error:
        raise RuntimeError(f"{module}: {build.name} does not compile for sm_{target}") from error
    sizes = _resources(made.asm["cubin"])
    return Cost(
        module,
        build.name,
        target,
        warps=build.warps,
        registers=sizes["REG"],
        stack=sizes["STACK"] + sizes["LOCAL"],
        shared=made.metadata.shared,
        tensor_cores=tuple(kind for kind in TENSOR_CORES if kind in made.asm["ptx"]),
    )


def _resources(image: bytes) -> dict[str, int]:
    """REG, STACK, LOCAL and the like of a cubin's only kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [tool("cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{SECTION.document.name}")
    parser.add_argument("--json", action="store_true", help="print every build's numbers instead")
    arguments = parser.parse_args()
    if arguments.json:
        json.dump([asdict(cost) for cost in _compiled()], sys.stdout)
    elif arguments.write:
        SECTION.write(table(costs()))
    else:
        print(table(costs()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
