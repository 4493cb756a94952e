"""Builds the host shim's self test twice, with AddressSanitizer and UBSan and with its watch over shared memory, and
runs the planted faults, each of which must be caught, and the kernels that must pass.
"""

import os
import re
import subprocess

import pytest
from conftest import SHIM
from drivers import SIMULATED, build_program

from fastcodec.kernels import build

SECONDS = 60

# nvcc lets kernels view shared memory as words and as bytes, and knows #pragma unroll.
CUDA_FLAGS = f"-Werror -fno-strict-aliasing -Wno-unknown-pragmas -include {SHIM / 'cuda_shim.h'}"
RACE = r"race: kernel \w+, block \(0, 0, 0\), warp \d, lane \d+ \w+ byte \d+ of .*\(self_test\.cpp:\d+\); before it, "
RACE += "with no barrier between, "
RESULT_DIFFERS = r"race: the result depends on the order in which threads run, or on memory that was not written"
FAULTS = {
    "global_out_of_bounds": r"AddressSanitizer: heap-buffer-overflow .*WRITE of size 4 .* global_out_of_bounds ",
    "misaligned_load": r"misaligned address .* for type 'const struct uint2'",
    "uninitialised_shared": RESULT_DIFFERS,
    "ballot_for_syncwarp": RACE + r"warp 0, lane 1 wrote it",
    "same_value_twice": RACE + r"warp 0, lane 0 wrote it",
    "divergent_ballot": r"deadlock: kernel divergent_ballot, block \(0, 0, 0\), warp 1: .* "
    r"lanes 0-7, 16-31: at __ballot_sync, mask 0xffffffff \(self_test\.cpp:\d+\)\n.* lanes 8-15: returned",
    "ballot_in_one_branch": r"deadlock: .* lanes 0-15: at __ballot_sync, .* lanes 16-31: at __shfl_sync, ",
    "ballot_without_self": r"wrong mask: .* lane 0 calls __ballot_sync with mask 0x0000ff00, which does not name it",
    "ballot_masks_differ": r"deadlock: .* lanes 0-7: at __ballot_sync, mask 0xffffffff",
    "syncthreads_against_syncwarp": r"deadlock: .* warp 2: .* lanes 0-15: at __syncthreads \(.* "
    r"lanes 16-31: at __syncwarp, mask 0xffffffff",
    "barriers_of_two_kinds": r"deadlock: .*: threads wait at different barriers\n.* warp 0, lanes 0-31: at "
    r"__syncthreads \(.* warp 2, lanes 0-31: at __syncthreads_count \(",
    "shuffle_width": r"wrong width: .* calls __shfl_down_sync with width 12",
    "trapped": r"__trap: kernel trapped, block \(0, 0, 0\), warp 2, lane 6",
}
# What the one build sees where it happens, the other by its results or its sanitizer.
FAULTS_BY_BUILD = {
    "sanitized": FAULTS
    | {
        "shared_out_of_bounds": r"AddressSanitizer: use-after-poison .*READ of size 4 .* shared_out_of_bounds ",
        "missing_syncthreads": RESULT_DIFFERS,
        "missing_second_syncthreads": RESULT_DIFFERS,
        "missing_syncwarp": RESULT_DIFFERS,
        "syncwarp_of_too_few": RESULT_DIFFERS,
        "read_beside_atomics": RESULT_DIFFERS,
    },
    "watched": FAULTS
    | {
        "shared_out_of_bounds": r"out of bounds: .* reads byte 384 of dynamic shared memory .*, which has 384",
        "missing_syncthreads": RACE,
        "missing_second_syncthreads": RACE,
        "missing_syncwarp": RACE,
        "syncwarp_of_too_few": RACE,
        "read_beside_atomics": RACE,
    },
}


@pytest.fixture(scope="module", params=SIMULATED)
def build_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def self_test(build_name):
    """Runs the self test of that build with arguments."""
    flags, kernel_flags = SIMULATED[build_name]
    sources = {
        SHIM / "self_test.cpp": f"{CUDA_FLAGS} {kernel_flags}",
        SHIM / "cuda_shim.cpp": "-Werror",
    }
    program = build_program(f"cuda_shim_{build_name}", sources, f"{flags} -I{SHIM}")
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(program), *arguments], capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
        )

    return run


def test_correct_kernels_pass(self_test):
    run = self_test()
    print(run.stdout)  # the switch rate, with pytest -rP
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("passed: ") == 11
    assert re.search(r"million a second", run.stdout)


def test_every_planted_fault_is_caught_and_its_twin_passes(self_test, build_name):
    names = self_test("list").stdout.split()
    assert len(names) >= 17
    for name in names:
        run = self_test("planted", name)
        assert run.returncode != 0, name
        assert re.search(FAULTS_BY_BUILD[build_name][name], run.stderr, re.DOTALL), run.stderr
        run = self_test("correct", name)
        assert run.returncode == 0, run.stdout + run.stderr
        assert run.stdout == f"{name}: no fault\n"


@pytest.mark.parametrize(
    "body, message",
    [
        ("__shared__ int words[32]; words[threadIdx.x] = 0;", "weak declaration of .words. must be public"),
        ("static __shared__ int words[32]; words[threadIdx.x] = 0;", "weak declaration of .words. must be public"),
        ("__activemask();", "use of deleted function"),
        ("static uint64_t sum; atomicAdd(&sum, uint64_t{1});", "invalid conversion from .uint64_t"),
        ("extern __shared__ unsigned char fastcodec_shared[]; fastcodec_shared[threadIdx.x] = 0;", None),
    ],
)
def test_what_is_not_supported_does_not_compile(body, message):
    command = [*build.compiler().split(), "-std=c++20", "-fsyntax-only", *CUDA_FLAGS.split(), "-xc++", "-"]
    source = f'extern "C" __global__ void kernel() {{ {body} }} CUDA_SHIM_KERNEL(kernel)'
    run = subprocess.run(command, input=source, capture_output=True, text=True, timeout=SECONDS, check=False)
    if message is None:
        assert run.returncode == 0, run.stderr
    else:
        assert run.returncode != 0
        assert re.search(message, run.stderr), run.stderr
