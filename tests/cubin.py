"""Reads what compiled CUDA kernels cost, without a GPU: registers, memory, and the instructions of a loop's hot path.

    python tests/cubin.py IMAGE                                    a line for each kernel and target
    python tests/cubin.py IMAGE --kernel NAME --through SHFL STG   the cheapest loop through these instructions, in full

IMAGE is a fatbin or a cubin. NVIDIA's cuobjdump and nvdisasm read it; Triton's wheel and the CUDA toolkit bring both.
"""

import argparse
import heapq
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SYSTEM_SHARED = 1024  # bytes of each block's shared memory that the system takes, on sm_90 and later


class MissingToolError(RuntimeError):
    """cuobjdump or nvdisasm is not on this machine."""


@dataclass(frozen=True)
class Usage:
    """What a kernel holds: registers and stack bytes of a thread; static shared memory, in bytes, of a block and how
    many threads it has at most (__launch_bounds__; 0 if it says nothing).

    A thread keeps what does not fit in registers on its stack, so a kernel without stack spills nothing.
    """

    registers: int
    stack: int
    shared: int
    threads: int


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: str  # "@P0", or nothing
    opcode: str
    operands: str

    def __str__(self) -> str:
        return f"{self.address:#06x} {self.guard:>5} {self.opcode} {self.operands}".rstrip()


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other; `after` are the numbers of the blocks that may follow."""

    label: str
    instructions: tuple[Instruction, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Loop:
    """One way around a loop."""

    blocks: tuple[Block, ...]

    @property
    def instructions(self) -> list[Instruction]:
        return [instruction for block in self.blocks for instruction in block.instructions]

    def count(self, opcode: str) -> int:
        """How many of its instructions are of this kind: see is_kind."""
        return sum(is_kind(instruction, opcode) for instruction in self.instructions)


def is_kind(instruction: Instruction, opcode: str) -> bool:
    """LDS means LDS.64 and LDS.U16 too; "ST|STG" means either."""
    return any(f"{instruction.opcode}.".startswith(f"{kind}.") for kind in opcode.split("|"))


def tool(name: str) -> str:
    """The path of one of NVIDIA's tools: in Triton's wheel, whose version is pinned, on the path, or in the toolkit."""
    folders = [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    if home := os.environ.get("CUDA_HOME"):
        folders.append(str(Path(home, "bin")))
    if triton := importlib.util.find_spec("triton"):
        folders[:0] = [str(Path(folder, "backends", "nvidia", "bin")) for folder in triton.submodule_search_locations]
    if found := shutil.which(name, path=os.pathsep.join(folders)):
        return found
    raise MissingToolError(f"{name} not found: install Triton's wheel or the CUDA toolkit")


def _output(*command: str, folder: str | None = None) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {run.stderr or run.stdout}")
    return run.stdout


def usage(image: Path) -> dict[tuple[str, int], Usage]:
    """By kernel and target, such as ("finish", 90)."""
    threads = _threads(image)
    found, target = {}, 0
    text = _output(tool("cuobjdump"), "--dump-resource-usage", str(image))
    for match in re.finditer(r"^arch = sm_(\d+)|^ Function (\w+):\n +(.*)$", text, flags=re.MULTILINE):
        if match[1]:
            target = int(match[1])
            continue
        kernel = match[2], target
        sizes = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", match[3])}
        shared = sizes["SHARED"] - (SYSTEM_SHARED if target >= 90 else 0)
        found[kernel] = Usage(sizes["REG"], sizes["STACK"] + sizes["LOCAL"], shared, threads.get(kernel, 0))
    return found


def _threads(image: Path) -> dict[tuple[str, int], int]:
    """Each kernel's launch bound, from what its section of information says."""
    bound = re.compile(r"EIATTR_MAX_THREADS$.*?\.word\s+(0x[0-9a-f]+)$", re.MULTILINE | re.DOTALL)
    return {
        (name.removeprefix(".nv.info."), target): int(match[1], 16)
        for (name, target), text in _sections(image).items()
        if name.startswith(".nv.info.") and (match := bound.search(text))
    }


def compiler_version(image: Path) -> str:
    """The version of the ptxas that made the machine code, such as 13.0.88."""
    match = re.search(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)", image.read_bytes())
    if match is None:
        raise RuntimeError(f"{image} does not say which compiler made it")
    return match[1].decode()


def targets(image: Path) -> dict[str, list[int]]:
    """Which GPUs the image holds machine code ("elf") and PTX ("ptx") for."""
    kinds = {"elf": "-lelf", "ptx": "-lptx"}
    listings = {kind: _output(tool("cuobjdump"), option, str(image)) for kind, option in kinds.items()}
    return {kind: [int(sm) for sm in re.findall(r"\.sm_(\d+)\.", text)] for kind, text in listings.items()}


def disassemble(image: Path) -> dict[tuple[str, int], list[Block]]:
    """Every kernel of the image as blocks, by kernel and target."""
    return {
        (name.removeprefix(".text."), target): blocks_of(text)
        for (name, target), text in _sections(image).items()
        if name.startswith(".text.")
    }


def _sections(image: Path) -> dict[tuple[str, int], str]:
    """nvdisasm's listing of each section, by its name and target."""
    return _sections_of(image, image.stat().st_mtime_ns)


@cache
def _sections_of(image: Path, changed: int) -> dict[tuple[str, int], str]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        _output(tool("cuobjdump"), "-xelf", "all", str(image.resolve()), folder=folder)
        for cubin in Path(folder).glob("*.cubin"):
            text = _output(tool("nvdisasm"), str(cubin))
            target = int(re.search(r"^\s*\.target\s+sm_(\d+)", text, flags=re.MULTILINE)[1])
            for section in re.split(r"^//-+ ", text, flags=re.MULTILINE)[1:]:
                found[section.split(maxsplit=1)[0], target] = section
    return found


_LINE = re.compile(r"^(?P<label>[.\w$]+):$|^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<code>[^;]+);", re.MULTILINE)
_CODE = re.compile(r"(?:(?P<guard>@!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>.*)")
_HINTS = re.compile(r"\s+[?&]\w.*$")  # for the scheduler, which some versions of nvdisasm append
_TARGET = re.compile(r"`\(([.\w$]+)\)$")


def blocks_of(listing: str) -> list[Block]:
    """The blocks of one kernel, from nvdisasm's listing of its section."""
    labels: list[str] = [""]
    bodies: list[list[Instruction]] = [[]]
    place: dict[str, int] = {}  # label -> number of its block
    for line in _LINE.finditer(listing):
        if line["label"]:
            if bodies[-1]:
                labels.append(line["label"])
                bodies.append([])
            place[line["label"]] = len(bodies) - 1
            labels[-1] = line["label"]
            continue
        code = _CODE.match(_HINTS.sub("", line["code"]).strip())
        bodies[-1].append(Instruction(int(line["address"], 16), code["guard"] or "", code["opcode"], code["operands"]))
        if code["opcode"].split(".")[0] in ("BRA", "EXIT", "RET", "BRX"):
            labels.append("")
            bodies.append([])
    _check_meetings(bodies, place)
    return [
        Block(label, tuple(body), _after(number, body, place, len(bodies)))
        for number, (label, body) in enumerate(zip(labels, bodies, strict=True))
    ]


def _check_meetings(bodies: list[list[Instruction]], place: dict[str, int]) -> None:
    """BSYNC lets a warp's threads meet and go on at the label that BSSY named: it must be the one right behind."""
    named = set()
    for instruction in (instruction for body in bodies for instruction in body if is_kind(instruction, "BSSY")):
        register, _, label = instruction.operands.partition(", ")
        named.add((register, place[label.strip("`()")]))
    for number, body in enumerate(bodies):
        for instruction in (instruction for instruction in body if is_kind(instruction, "BSYNC")):
            if instruction is not body[-1] or (instruction.operands.strip(), number + 1) not in named:
                raise ValueError(f"goes on elsewhere: {instruction}")


def _after(number: int, body: list[Instruction], place: dict[str, int], blocks: int) -> tuple[int, ...]:
    """The blocks that may follow this one.

    A warp whose threads went apart takes slow copies of votes and shuffles, out of line; those ways (BRA.DIV, and not
    taking BRA.CONV) are left out. A call returns behind itself, and so does BSYNC (_check_meetings).
    """
    following = (number + 1,) if number + 1 < blocks else ()
    if not body:
        return following
    last = body[-1]
    kind, _, variant = last.opcode.partition(".")
    if kind == "BRX":
        raise ValueError(f"a jump through a register: {last}")
    if kind in ("EXIT", "RET"):
        return following if last.guard and last.guard != "@PT" else ()
    if kind != "BRA" or variant.startswith("DIV") or last.guard == "@!PT":
        return following
    to = _TARGET.search(last.operands)
    if to is None or to[1] not in place:
        raise ValueError(f"a jump out of the kernel: {last}")
    always = not last.guard and last.operands.startswith("`")
    if always or variant.startswith("CONV"):
        return (place[to[1]],)
    return (*following, place[to[1]])


def cheapest_loop(blocks: list[Block], through: Counter[str]) -> Loop:
    """The way around a loop with the fewest instructions that has at least so many of each of these opcodes.

    Each branch goes the way that is cheaper, so what is rare and costs extra (an escape, a refill) is not in it; the
    opcodes must be ones that every round has. An instruction whose guard is false counts too: it is issued. A loop
    that the compiler unrolled counts as many rounds as it has copies.
    """
    wanted = tuple(through)
    sizes = [len(block.instructions) for block in blocks]
    holds = [tuple(Loop((block,)).count(opcode) for opcode in wanted) for block in blocks]

    def with_block(seen: tuple[int, ...], block: int) -> tuple[int, ...]:
        return tuple(min(have + more, through[k]) for have, more, k in zip(seen, holds[block], wanted, strict=True))

    best: tuple[int, tuple[int, ...]] | None = None
    # Dijkstra's algorithm over (block, opcodes met), from each block that has the first opcode back to itself.
    for start in (number for number, held in enumerate(holds) if held[0]):
        queue = [(sizes[start], start, with_block((0,) * len(wanted), start), (start,))]
        done = set()
        while queue:
            cost, block, seen, way = heapq.heappop(queue)
            if (block, seen) in done or (best and cost >= best[0]):
                continue
            done.add((block, seen))
            complete = all(have >= through[k] for have, k in zip(seen, wanted, strict=True))
            if complete and start in blocks[block].after:
                best = (cost, way)
                break
            for after in blocks[block].after:
                heapq.heappush(queue, (cost + sizes[after], after, with_block(seen, after), (*way, after)))
    if best is None:
        raise ValueError(f"no loop has {', '.join(through.elements())}")
    way = best[1]
    head = way.index(min(way))  # as the listing has it: a loop's head comes first
    return Loop(tuple(blocks[number] for number in (*way[head:], *way[:head])))


def describe(loop: Loop, listing: bool = False) -> str:
    """A loop for human eyes: its blocks, and how often each opcode is in it."""
    lines = []
    for block in loop.blocks:
        first, last = block.instructions[0], block.instructions[-1]
        ends = f"{last.guard} {last.opcode} {last.operands}".strip()
        count = len(block.instructions)
        lines.append(f"  {first.address:#06x}-{last.address:#06x} {block.label:10} {count:3} instructions, to {ends}")
        if listing:
            lines += [f"    {instruction}" for instruction in block.instructions]
    histogram = Counter(instruction.opcode.split(".")[0] for instruction in loop.instructions)
    lines.append("  " + ", ".join(f"{count} {opcode}" for opcode, count in histogram.most_common()))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--kernel", help="a regular expression")
    parser.add_argument("--target", type=int, help="such as 90")
    parser.add_argument("--through", nargs="+", metavar="OPCODE", help="opcodes of each round; name one twice for two")
    parser.add_argument("--listing", action="store_true", help="print the loop's instructions")
    arguments = parser.parse_args()

    def chosen(kernel: str, target: int) -> bool:
        return re.search(arguments.kernel or "", kernel) is not None and arguments.target in (None, target)

    if not arguments.through:
        for (kernel, target), use in sorted(usage(arguments.image).items()):
            if chosen(kernel, target):
                print(
                    f"{kernel} sm_{target}: {use.registers} registers, stack {use.stack}, shared {use.shared}, "
                    f"at most {use.threads} threads"
                )
        return 0
    for (kernel, target), blocks in sorted(disassemble(arguments.image).items()):
        if chosen(kernel, target):
            try:
                loop = cheapest_loop(blocks, Counter(arguments.through))
            except ValueError as error:
                print(f"{kernel} sm_{target}: {error}")
                continue
            print(f"{kernel} sm_{target}: {len(loop.instructions)} instructions")
            print(describe(loop, arguments.listing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
