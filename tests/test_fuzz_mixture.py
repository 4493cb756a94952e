"""Builds tests/fuzz_mixture.cpp with the address and undefined-behaviour sanitizers, and runs it."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from fastcodec.kernels import build

CASES = 10_000
SECONDS = 120
MEMORY_MB = 1024


@pytest.fixture(scope="module")
def driver() -> Path:
    sources = {ROOT / "kernels" / source: isa for source, isa in build.rans_sources().items()}
    flags = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
    try:
        return build.build_program("fuzz_mixture", {**sources, ROOT / "tests" / "fuzz_mixture.cpp": ""}, flags)
    except build.BuildError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_twins_agree_on_corrupt_payloads(driver):
    seed = os.environ.get("FASTCODEC_FUZZ_SEED", "1")
    environment = {
        **os.environ,
        "ASAN_OPTIONS": f"hard_rss_limit_mb={MEMORY_MB}:max_allocation_size_mb={MEMORY_MB}:detect_leaks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    run = subprocess.run(
        [str(driver), str(CASES), seed], capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # The cases must reach every error, and some payloads must pass, or the driver tests less than it says.
    counts = {text: int(count) for count, text in re.findall(r"^ *(\d+) (.+)$", run.stdout, flags=re.MULTILINE)}
    assert len(counts) == 12
    assert all(counts.values()), run.stdout
    assert int(re.search(r"accepted (\d+)", run.stdout)[1]) > 0
