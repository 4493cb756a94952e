"""The CUDA mixture kernels without a GPU: unchanged in the host shim (cuda_shim/), beside the CPU coder.

tests/cuda_mixture.cpp compares the two on thousands of cases, under the address and undefined-behaviour sanitizers and
under the shim's own watch for races; nvcc, where it is found, compiles the kernels for real GPUs.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, SHIM, SIMULATION

from fastcodec.kernels import build

KERNELS = ROOT / "kernels" / "rans"
CASES = 800
SECONDS = 240
REGISTERS = 128  # of a thread: cuda_mixture.h's blocks have 512

# As tests/test_cuda_rans.py has them.
BUILDS = {
    "sanitized": ("-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all", ""),
    "watched": ("-O1 -g", "-fsanitize=thread"),
}


@pytest.fixture(scope="module", params=BUILDS)
def driver(request) -> Path:
    flags, kernel_flags = BUILDS[request.param]
    sources = {ROOT / "kernels" / source: isa for source, isa in build.rans_sources().items()}
    sources |= {KERNELS / "cuda_mixture_host.cpp": "", ROOT / "tests" / "cuda_mixture.cpp": ""}
    for source, shim_flags in SIMULATION.items():
        if source.name == "rans_kernels.cpp":
            sources[SHIM / "mixture_kernels.cpp"] = f"{shim_flags} {kernel_flags}"
        else:
            sources[source] = shim_flags
    try:
        return build.build_program(f"cuda_mixture_{request.param}", sources, f"{flags} -rdynamic")
    except build.BuildError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_kernels_agree_with_the_cpu_coder(driver):
    seed = os.environ.get("FASTCODEC_FUZZ_SEED", "1")
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    run = subprocess.run(
        [str(driver), str(CASES), seed], capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # All numbers of lanes and all errors that kernels find must have occurred, or the driver tests less than it says.
    counts = {text: int(count) for count, text in re.findall(r"^ *(\d+) (.+)$", run.stdout, flags=re.MULTILINE)}
    found = {text for text, count in counts.items() if count}
    assert found >= {
        "no error",
        "a stream ran out of words",
        "a stream ran out of escapes",
        "a coder state did not return to its origin",
        "words are left over",
        "escapes are left over",
        "wrong weights",
    }, run.stdout
    lanes = re.search(r"lanes, 1 to 32: (.+)$", run.stdout, flags=re.MULTILINE)[1].split()
    assert len(lanes) == 6
    assert all(map(int, lanes)), run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90, 100])
def test_compiles_without_spills(tmp_path, target):
    if (nvcc := build.image_compiler()) is None:
        pytest.skip("no nvcc")
    command = [nvcc, *build.NVCC_FLAGS.split(), "-cubin", f"-arch=sm_{target}", "-Xptxas", "-v"]
    run = subprocess.run(
        [*command, "-o", tmp_path / "mixture.cubin", KERNELS / "cuda_mixture.cu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = re.findall(
        r"entry function '(\w*mixtures\w*)' .*?(\d+) bytes stack frame, (\d+) bytes spill.*?Used (\d+) registers",
        run.stderr,
        flags=re.DOTALL,
    )
    assert len(found) == 7, run.stderr
    for name, stack, spilled, registers in found:
        assert (int(stack), int(spilled)) == (0, 0), name
        assert int(registers) <= REGISTERS, name
