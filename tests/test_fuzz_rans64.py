"""fuzz_rans64.cpp under the address and undefined-behaviour sanitizers: damaged streams of CompressAI's format."""

import pytest
from drivers import KERNELS, build_driver, run_driver


@pytest.mark.slow
def test_damaged_streams():
    driver = build_driver("fuzz_rans64", {KERNELS / "rans64" / "rans64.cpp": ""})
    output, counts = run_driver(driver, 10_000, memory_mb=1024)
    # The cases must reach every error, and some must pass, or the driver tests less than it says.
    assert counts.pop("no memory") == counts.pop("failed before") == 0
    assert len(counts) == 9
    assert all(counts.values()), output
