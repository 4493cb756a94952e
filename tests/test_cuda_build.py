"""What nvcc makes of the CUDA kernels, proved without a GPU: targets, spills, registers, instructions of a step.

kernels/build.py compiles them with warnings as errors, so that they compile at all is already something.
"""

from collections import Counter
from pathlib import Path

import pytest
from cubin import MissingToolError, blocks_of, cheapest_loop, compiler_version, describe, targets, tool
from kernel_table import SECTION, build_module, limits, loops_by_kernel, table, usage_by_kernel

REGISTERS = 1 << 16  # of an SM, on every target; a warp's threads are given them eight at a time


@pytest.fixture(scope="module")
def image() -> Path:
    build = build_module()
    if build.image_compiler() is None:
        pytest.skip("no nvcc that builds the CUDA image")
    try:
        tool("cuobjdump"), tool("nvdisasm")
    except MissingToolError as error:
        pytest.skip(str(error))
    build.build()
    return build.cuda_image_path()


def test_image_holds_every_target(image):
    build = build_module()
    assert targets(image) == {"elf": list(build.CUDA_TARGETS), "ptx": [build.CUDA_PTX]}


def test_nothing_spills_and_blocks_fit(image):
    for kernel, versions in usage_by_kernel(image).items():
        assert len(versions) == len(build_module().CUDA_TARGETS), kernel
        for target, use in versions.items():
            assert use.stack == 0, f"{kernel} sm_{target} keeps {use.stack} bytes on the stack"
            taken = (use.registers + 7) // 8 * 8 * use.threads
            assert 0 < taken <= REGISTERS, f"{kernel} sm_{target}: {use.registers} registers, {use.threads} threads"


def skip_other_compilers(image: Path) -> None:
    version = compiler_version(image)
    if f"nvcc {version}," not in SECTION.read():
        pytest.skip(f"docs/kernels.md is of another compiler than {version}")


def test_table_is_true(image):
    skip_other_compilers(image)
    assert SECTION.read() == table(image), "python tests/kernel_table.py --write"


def test_steps_are_short(image):
    skip_other_compilers(image)
    loops = loops_by_kernel(image)
    for (kernel, name), limit in limits().items():
        for target, loop in loops[kernel, name].items():
            count = len(loop.instructions)
            assert count <= limit, f"{kernel} sm_{target}, {name}: {count} instructions\n{describe(loop)}"


LISTING = """
.text.example:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/               @P3 EXIT ;
.L_x_1:
        /*0020*/                   LDS.64 R2, [R4] ;
        /*0030*/                   BRA.DIV UR4, `(.L_x_9) ;
        /*0040*/                   VOTE.ANY P0, P1 ;
.L_x_8:
        /*0050*/                   BSSY B0, `(.L_x_3) ;
        /*0060*/              @!P0 BRA `(.L_x_2) ;
        /*0070*/                   LDG.E R5, [R6] ;
        /*0080*/                   IMAD R5, R5, R5, R5 ;
        /*0090*/                   IMAD R5, R5, R5, R5 ;
.L_x_2:
        /*00a0*/                   BSYNC B0 ;
.L_x_3:
        /*00b0*/              @!P4 STG.E.U16 [R6], R5 ;
        /*00c0*/               @P1 BRA P2, `(.L_x_1) ;
        /*00d0*/                   EXIT ;
.L_x_9:
        /*00e0*/                   WARPSYNC.COLLECTIVE R3, `(.L_x_8) ;
        /*00f0*/                   BRA `(.L_x_8) ;
.L_x_10:
        /*0100*/                   BRA `(.L_x_10);
"""


@pytest.mark.parametrize(
    "through, addresses",
    [
        # Not the walk, not the way of threads that went apart, which would save the vote.
        ({"LDS": 1, "STG|ST": 1}, [*range(0x20, 0x70, 0x10), *range(0xA0, 0xD0, 0x10)]),
        ({"VOTE": 1}, [*range(0x20, 0x70, 0x10), *range(0xA0, 0xD0, 0x10)]),
        ({"LDS.64": 1, "LDG": 1}, list(range(0x20, 0xD0, 0x10))),
        ({"BRA": 1, "LDS": 0}, [0x100]),
        ({"STG": 2}, 2 * [*range(0x20, 0x70, 0x10), *range(0xA0, 0xD0, 0x10)]),
    ],
)
def test_cheapest_loop(through, addresses):
    loop = cheapest_loop(blocks_of(LISTING), Counter(through))
    assert [instruction.address for instruction in loop.instructions] == addresses
    assert len(describe(loop).splitlines()) == len(loop.blocks) + 1


def test_no_such_loop():
    with pytest.raises(ValueError, match="MUFU"):
        cheapest_loop(blocks_of(LISTING), Counter({"MUFU": 1}))


def test_a_listing_that_is_not_understood_is_an_error():
    with pytest.raises(ValueError, match="BSYNC"):
        blocks_of(LISTING.replace("BSSY B0, `(.L_x_3)", "BSSY B0, `(.L_x_2)"))
    with pytest.raises(ValueError, match="register"):
        blocks_of(LISTING.replace("BRA `(.L_x_10)", "BRX R2 -0x100"))
