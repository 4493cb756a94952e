"""What Triton makes of the kernels, proved without a GPU: they compile for every target, fit, and spill nothing."""

import pytest
from cubin import MissingToolError, tool

pytest.importorskip("triton")

from triton_table import SECTION, TARGETS, Cost, costs, table, triton_version

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that a program can have
REGISTERS = 1 << 16  # of a multiprocessor; a warp's threads are given them eight at a time


@pytest.fixture(scope="module")
def compiled() -> list[Cost]:
    try:
        tool("cuobjdump")
    except MissingToolError as error:
        pytest.skip(str(error))
    return costs()


def test_every_build_is_there(compiled):
    """A module that forgets its builds(), or whose discovery fails, would otherwise be proved by silence."""
    names = {(cost.module, cost.name) for cost in compiled}
    assert {module for module, _ in names} >= {"gaussian_cdf", "gaussian_likelihood", "hyper_synthesis", "parameters"}
    assert len(compiled) == len(names) * len(TARGETS), "two builds of one name"


def test_nothing_spills_and_programs_fit(compiled):
    for cost in compiled:
        assert cost.stack == 0, f"{cost} keeps bytes on the stack"
        assert cost.shared <= SHARED[cost.target], cost
        assert 0 < (cost.registers + 7) // 8 * 8 * 32 * cost.warps <= REGISTERS, cost


def test_the_entropy_network_runs_on_tensor_cores(compiled):
    for cost in compiled:
        if cost.module in ("hyper_synthesis", "parameters"):
            wide = cost.target == 90 and cost.name.endswith("many") and not cost.name.startswith("encode")
            assert cost.tensor_cores == (("wgmma",) if wide else ("mma.sync",)), cost


def test_table_is_true(compiled):
    if f"Triton {triton_version()}," not in SECTION.read():
        pytest.skip(f"docs/kernels.md is of another Triton than {triton_version()}")
    assert SECTION.read() == table(compiled), "python tests/triton_table.py --write"
