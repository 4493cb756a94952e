"""Builds tests/fuzz_rans64.cpp with the address and undefined-behaviour sanitizers, and runs it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from fastcodec.kernels import build

ROOT = Path(__file__).resolve().parents[1]
CASES = 10_000


@pytest.mark.slow
def test_damaged_streams():
    flags = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
    sources = {ROOT / "kernels" / "rans64" / "rans64.cpp": "", Path(__file__).with_name("fuzz_rans64.cpp"): ""}
    try:
        driver = build.build_program("fuzz_rans64", sources, flags)
    except build.BuildError as error:
        pytest.skip(str(error))
    run = subprocess.run(
        [str(driver), str(CASES), os.environ.get("FASTCODEC_FUZZ_SEED", "1")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "ASAN_OPTIONS": "hard_rss_limit_mb=1024", "UBSAN_OPTIONS": "print_stacktrace=1"},
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    counts = {name: int(count) for count, name in re.findall(r"^ *(\d+) (.+)$", run.stdout, flags=re.MULTILINE)}
    # The cases must reach every error, and some must pass, or the driver tests less than it says.
    assert counts.pop("no memory") == counts.pop("failed before") == 0
    assert len(counts) == 9
    assert all(counts.values()), run.stdout
