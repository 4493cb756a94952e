"""The C++ programs of this folder: built with sanitizers, run on a number of random cases, and what they counted."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, SHIM, SIMULATION

from fastcodec.kernels import build

KERNELS = Path(build.__file__).parent  # of the checkout, or of an installed package
SANITIZED = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
# How a program with simulated kernels is built: its flags, and those of the kernels alone. The second leaves
# AddressSanitizer out: the shim watches shared memory in its place, by the calls that g++ makes for its thread
# sanitizer. So only the kernels get that flag, and the program is linked without it.
SIMULATED = {"sanitized": (SANITIZED, ""), "watched": ("-O1 -g", "-fsanitize=thread")}


def build_program(name: str, sources: dict[Path, str], flags: str) -> Path:
    """A program of these sources, each with flags of its own; skips where it cannot be built."""
    try:
        return build.build_program(name, sources, flags)
    except build.BuildError as error:
        pytest.skip(str(error))


def _coder() -> dict[Path, str]:
    """The CPU coder's sources, each with the flags of its own."""
    return {KERNELS / source: isa for source, isa in build.rans_sources().items()}


def build_driver(name: str, sources: dict[Path, str] | None = None) -> Path:
    """tests/NAME.cpp with these sources, or with the CPU coder's."""
    return build_program(
        name, {**(_coder() if sources is None else sources), ROOT / "tests" / f"{name}.cpp": ""}, SANITIZED
    )


def build_simulated(name: str, kind: str) -> Path:
    """tests/NAME.cpp with the CPU coder and the CUDA one in the host shim, built in one of the ways of SIMULATED."""
    flags, kernel_flags = SIMULATED[kind]
    host = {KERNELS / source: "" for source in build.CUDA_HOST_SOURCES}
    sources = {**_coder(), **host, ROOT / "tests" / f"{name}.cpp": "", **SIMULATION}
    sources[SHIM / "rans_kernels.cpp"] += f" {kernel_flags}"
    return build_program(f"{name}_{kind}", sources, f"{flags} -rdynamic")


def run_driver(
    driver: Path, cases: int, kind: str = "", *, seconds: int = 120, memory_mb: int | None = None
) -> tuple[str, dict]:
    """What it printed, and its counts by their names: lines of a number and a text. It must end well.

    kind: the driver's third argument; memory_mb: how much it may have at once, and in one piece.
    """
    limits = f":hard_rss_limit_mb={memory_mb}:max_allocation_size_mb={memory_mb}" if memory_mb else ""
    run = subprocess.run(
        [str(driver), str(cases), os.environ.get("FASTCODEC_FUZZ_SEED", "1"), kind],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "ASAN_OPTIONS": f"detect_leaks=1{limits}", "UBSAN_OPTIONS": "print_stacktrace=1"},
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(r"^ *(\d+) (.+)$", run.stdout, flags=re.MULTILINE)
    return run.stdout, {text: int(count) for count, text in found}


def assert_all_lanes(output: str) -> None:
    """Every number of lanes occurred."""
    lanes = re.search(r"lanes, 1 to 32: (.+)$", output, flags=re.MULTILINE)[1].split()
    assert len(lanes) == 6
    assert all(map(int, lanes)), output
