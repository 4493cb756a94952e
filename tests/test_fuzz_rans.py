"""fuzz_rans.cpp under the address and undefined-behaviour sanitizers: the CPU's twins on damaged payloads."""

import re

import pytest
from drivers import build_driver, run_driver


@pytest.mark.slow
@pytest.mark.parametrize("kind, cases, errors", [("", 20_000, 11), ("mixed", 10_000, 12)], ids=["indexed", "mixed"])
def test_twins_agree_on_corrupt_payloads(kind, cases, errors):
    output, counts = run_driver(build_driver("fuzz_rans"), cases, kind, memory_mb=1024)
    # The cases must reach every error, and some payloads must pass, or the driver tests less than it says.
    assert len(counts) == errors
    assert all(counts.values()), output
    assert int(re.search(r"accepted (\d+)", output)[1]) > 0
