"""The CUDA mixture kernels without a GPU: unchanged in the host shim (cuda_shim/), beside the CPU coder.

tests/cuda_rans.cpp compares the two on thousands of cases, under the address and undefined-behaviour sanitizers and
under the shim's own watch for races; the tests here go through the public interface. tests/test_gpu_rans.py does the
same on a GPU, and tests/test_cuda_build.py looks at the machine code.
"""

import numpy as np
import pytest
import torch
from drivers import SIMULATED, assert_all_lanes, build_simulated, run_driver
from simulation import simulated
from test_gpu_rans import draw

from fastcodec.kernels.rans import Decoder, _cuda, _operators, cost_bits, encode


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIMULATED)
def test_kernels_agree_with_the_cpu_coder(kind):
    output, counts = run_driver(build_simulated("cuda_rans", kind), 800, "mixed", seconds=240)
    # All numbers of lanes and all errors that kernels find must have occurred, or the driver tests less than it says.
    found = {text for text, count in counts.items() if count}
    assert found >= {
        "no error",
        "a stream ran out of words",
        "a stream ran out of escapes",
        "a coder state did not return to its origin",
        "words are left over",
        "escapes are left over",
        "wrong weights",
    }, output
    assert_all_lanes(output)


@pytest.fixture
def tiles():
    """Hyper latents by tables, and two passes of mixtures."""
    rng = np.random.default_rng(4)
    kinds = ("gaussian", "mixtures", "mixtures")
    return [[draw(rng, kind, positions, 12) for kind in kinds] for positions in (5, 40)]


def test_public_interface_in_the_shim(simulator, tiles):
    wanted = {preset: encode(tiles, preset=preset) for preset in ("size", "latency")}
    costs = [cost_bits(item) for tile in tiles for item in tile]
    with simulated(simulator):
        assert {preset: encode(tiles, preset=preset) for preset in wanted} == wanted
        assert [cost_bits(item) for tile in tiles for item in tile] == costs
        decoder = Decoder(wanted["latency"])
        assert isinstance(decoder._impl, _cuda.CudaDecoder)
        decoded = [decoder.decode([tile[0].indexes for tile in tiles], tiles[0][0].tables)]
        for number in (1, 2):
            decoded.append(decoder.decode_mixtures([tile[number][1:] for tile in tiles]))
        decoder.finish()
    for number, symbols in enumerate(decoded):
        for tile, found in zip(tiles, symbols, strict=True):
            assert torch.equal(found, tile[number].symbols)


def test_operators_are_known_to_pytorch(tiles):
    passes = [item for tile in tiles for item in tile]
    symbols, parameters, names = _operators.encode_arguments(passes)
    assert names == [passes[0].tables.identity, "", ""] * 2
    torch.library.opcheck(_operators.encode, (symbols, parameters, names, [0, 3, 6], "size", 0, 0, 1, ""))
    [payload] = encode([[tiles[0][1]]])
    decoder = Decoder([payload])
    wanted, *mixtures = tiles[0][1]

    def a_pass(
        state: torch.Tensor, number: int, weights: torch.Tensor, means: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        out = torch.empty(weights.shape[1:], dtype=torch.int16)
        torch.ops.fastcodec.rans_decode_mixtures(state, number, [weights], [means], [scales], [out])
        return out.float().mul(2)

    compiled = torch.compile(a_pass, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(decoder._impl.state, decoder._number, *mixtures), wanted.float() * 2)
    decoder.finish()
