"""cheng2020 with mixtures of three Gaussians: files, rates, and the likelihood that they are trained with."""

import math

import numpy as np
import pytest
import torch

from fastcodec.codec import Codec
from fastcodec.engines.whole_image import network_input
from fastcodec.errors import CorruptStreamError
from fastcodec.images import to_picture
from fastcodec.kernels import rans
from fastcodec.models import zoo
from fastcodec.models.zoo.mixture_conditional import MixtureConditional

pytestmark = pytest.mark.usefixtures("one_thread")

MIXTURES = [name for name in zoo.SYSTEMS if "mixture" in name]
CHANNELS = 16


def model_for(name: str, image: np.ndarray) -> zoo.CompressionModel:
    """Random weights, with latents of some size and mixtures as wide as they are: what training would bring about."""
    torch.manual_seed(3)
    model = zoo.SYSTEMS[name].model(CHANNELS).eval()
    model.update()
    with torch.no_grad():
        y = model.g_a(network_input(model, image))
        gain = 4 / y.std()
        last = next(module for module in reversed(list(model.g_a.modules())) if isinstance(module, torch.nn.Conv2d))
        last.weight.mul_(gain)
        last.bias.mul_(gain)
        y = model.g_a(network_input(model, image))
        spread = (y - y.mean((2, 3), keepdim=True)).std((0, 2, 3)).repeat(3)
        bias = model.entropy_parameters[-1].bias.view(3, -1)
        bias[1] = y.mean((0, 2, 3)).repeat(3) + torch.tensor([-0.5, 0.0, 0.5]).repeat_interleave(CHANNELS) * spread
        bias[2] = spread
    return model


@pytest.fixture
def image(photographs) -> np.ndarray:
    return photographs["astronaut"][40:150, 60:220]


@pytest.mark.parametrize("name", MIXTURES)
def test_files(name, image):
    model = model_for(name, image)
    codec = Codec(model)
    encoded = codec.encode(to_picture(image))
    assert len(encoded) <= 1.01 * encoded.estimated_bits / 8 + 100
    assert len(encoded) >= 0.99 * encoded.estimated_bits / 8
    assert codec.decode(encoded, out="numpy").shape == image.shape
    x = network_input(codec.model, image)
    with torch.inference_mode():
        y = model.g_a(x.contiguous(memory_format=torch.channels_last))
        coded = model.encode_latents(y)
        (payload,) = rans.encode([coded.passes], streams=coded.streams)
        decoder = rans.Decoder([payload])
        y_hat = model.decode_latents(decoder, *y.shape[2:])
        decoder.finish()
    assert torch.equal(y_hat, coded.y_hat)
    assert torch.equal(y_hat, y.round())
    with pytest.raises(CorruptStreamError):
        model.decompress(payload[:-3], tuple(y.shape[2:]))


@pytest.mark.parametrize("name", MIXTURES)
def test_weights_load_again_and_train(name):
    torch.manual_seed(1)
    model = zoo.SYSTEMS[name].model(CHANNELS)
    again = zoo.load(name, model.state_dict())
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
    out = model(torch.rand(2, 3, 64, 64))
    (out["y_bits"].sum() + out["x_hat"].square().sum()).backward()
    gradients = [p.grad for p in model.entropy_parameters.parameters()]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)


def test_bits_are_those_of_the_mixture():
    """Against the formula, element by element, in float64."""
    generator = torch.Generator().manual_seed(2)
    conditional, latents = MixtureConditional(), 5
    parameters = torch.randn(1, 9 * latents, 2, 3, generator=generator)
    y = torch.randn(1, latents, 2, 3, generator=generator).mul(2).round()
    bits = conditional.bits(y, parameters)
    logits, means, scales = parameters.double().view(3, 3, latents, 2, 3)
    for m, row, column in np.ndindex(latents, 2, 3):
        shares, centres, widths = (part[:, m, row, column] for part in (logits.softmax(0), means, scales))
        mass, value = 0.0, float(y[0, m, row, column])
        for share, centre, width in zip(shares.tolist(), centres.tolist(), widths.tolist(), strict=True):
            low, high = ((value + side - centre) / max(width, 0.11) / math.sqrt(2) for side in (-0.5, 0.5))
            mass += share * 0.5 * (math.erf(high) - math.erf(low))
        assert float(bits[0, m, row, column]) == pytest.approx(-math.log2(max(mass, 1e-9)), rel=1e-3, abs=1e-4)
