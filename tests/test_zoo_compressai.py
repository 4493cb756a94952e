"""The zoo against CompressAI itself: its weights load as they are and give its latents, parameters and images.

Skipped where it is not installed (docs/dependencies.md; `make bench` installs it).
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcodec.models import zoo

pytestmark = pytest.mark.usefixtures("one_thread")

if importlib.util.find_spec("compressai") is None:
    pytest.skip("CompressAI is not installed: `make bench` installs it", allow_module_level=True)

# Our name: theirs in compressai.models, and channels: small ones, and once the published.
CLASSES = {
    "bmshj2018-factorized": ("FactorizedPrior", (16, 24)),
    "bmshj2018-hyperprior": ("ScaleHyperprior", (128, 192)),
    "mbt2018-mean": ("MeanScaleHyperprior", (16, 24)),
    "mbt2018": ("JointAutoregressiveHierarchicalPriors", (16, 24)),
    "cheng2020-serial": ("Cheng2020Anchor", (16,)),
    "cheng2020-serial-attention": ("Cheng2020Attention", (16,)),
    "cheng2020-checkerboard": ("Cheng2020AnchorCheckerboard", (16,)),
}


def random_weights(compressai, name: str) -> nn.Module:
    """CompressAI's model with latents, medians and contexts that are not all zero, as random weights have them."""
    torch.manual_seed(1)
    kind, channels = CLASSES[name]
    model = getattr(compressai.models, kind)(*channels).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if part.endswith("quantiles"):
                parameter[:, 0, 1] += torch.rand(len(parameter)) * 3
            elif "context_prediction" in part or part.endswith(("entropy_parameters.4.bias", "h_s.4.bias")):
                parameter.add_(torch.rand_like(parameter) * (0.05 if "weight" in part else 1))
            elif "factors" in part:
                parameter.uniform_(-0.5, 0.5)
        last = [layer for layer in model.g_a if isinstance(layer, nn.Conv2d)][-1]
        last.weight.mul_(40)
    model.update()
    return model


@pytest.mark.parametrize("name", CLASSES)
def test_weights_latents_parameters_and_images(compressai, name, photographs):
    theirs = random_weights(compressai, name)
    state = theirs.state_dict()
    ours = zoo.load(name, state)
    assert ours.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[part]) for part, tensor in ours.state_dict().items())

    pixels = photographs["coffee"][100:164, 200:328]
    x = torch.tensor(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255
    y, y_hat, scales = Seen(), Seen(), Seen()
    theirs.g_a.register_forward_hook(lambda *call: y.theirs.append(call[2]))
    ours.g_a.register_forward_hook(lambda *call: y.ours.append(call[2]))
    theirs.g_s.register_forward_pre_hook(lambda _, arguments: y_hat.theirs.append(arguments[0]))
    ours.g_s.register_forward_pre_hook(lambda _, arguments: y_hat.ours.append(arguments[0]))
    if name != "bmshj2018-factorized":
        conditional = ours.gaussian_conditional
        nested = theirs.latent_codec["y"]["y"] if hasattr(theirs, "latent_codec") else theirs
        scales.record(conditional, "indexes", "ours")
        scales.record(nested.gaussian_conditional, "build_indexes", "theirs")
    with torch.no_grad():
        coded = theirs.compress(x)
        scales.theirs.clear()
        x_theirs = theirs.decompress(coded["strings"], coded["shape"])["x_hat"]
    compressed = ours.compress(x)
    scales.ours.clear()
    x_ours = ours.decompress(compressed.payload, compressed.shape)

    assert y.theirs[0].std() > 1
    torch.testing.assert_close(y.ours[0], y.theirs[0], rtol=1e-5, atol=1e-4)
    # Equal up to float32's rounding: a symbol that differed would be off by 1.
    torch.testing.assert_close(y_hat.ours[0], y_hat.theirs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_ours, x_theirs, rtol=1e-4, atol=1e-4)
    if scales.ours:
        torch.testing.assert_close(by_value(scales.ours), by_value(scales.theirs), rtol=1e-4, atol=1e-5)


class Seen:
    """What passed a place in CompressAI's model and in ours."""

    def __init__(self) -> None:
        self.theirs: list[Tensor] = []
        self.ours: list[Tensor] = []

    def record(self, module: nn.Module, method: str, whose: str) -> None:
        plain = getattr(module, method)
        setattr(module, method, lambda scales: getattr(self, whose).append(scales) or plain(scales))


def by_value(passes: list[Tensor]) -> Tensor:
    """All scales of all passes in increasing order: passes' layouts differ."""
    return torch.cat([scales.flatten() for scales in passes]).sort().values


@pytest.mark.parametrize("name", ["mbt2018-mean", "cheng2020-checkerboard"])
def test_compressai_loads_ours(compressai, name):
    """Names and shapes are the same the other way round too, tables included."""
    kind, channels = CLASSES[name]
    ours = zoo.SYSTEMS[name].model(*channels)
    ours.update()
    theirs = getattr(compressai.models, kind).from_state_dict(dict(ours.state_dict()))
    cdf = ours.gaussian_conditional._quantized_cdf
    nested = theirs.latent_codec["y"]["y"] if hasattr(theirs, "latent_codec") else theirs
    assert torch.equal(nested.gaussian_conditional._quantized_cdf, cdf)
    assert nested.gaussian_conditional._cdf_length.tolist() == ours.gaussian_conditional._cdf_length.tolist()


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean"])
def test_tables_are_theirs(compressai, name):
    """The CDFs that `update` makes are CompressAI's, but for less than two units of 2^-16 moved an entry: both give
    every entry at least one unit, and take it from others by their own rule."""
    theirs = random_weights(compressai, name)
    state = {part: tensor for part, tensor in theirs.state_dict().items()}
    for part in state:
        if part.endswith(("_quantized_cdf", "_offset", "_cdf_length", "scale_table")):
            state[part] = state[part][:0]
    ours = zoo.load(name, state)
    for model in ("entropy_bottleneck", "gaussian_conditional"):
        if hasattr(theirs, model):
            a, b = getattr(ours, model), getattr(theirs, model)
            assert torch.equal(a._offset, b._offset)
            assert torch.equal(a._cdf_length, b._cdf_length)
            moved = (a._quantized_cdf.diff() - b._quantized_cdf.diff()).abs().sum(1) / 2
            assert (moved < 2 * a._cdf_length).all()


def test_channels_are_their_zoo_s(compressai):
    from compressai.zoo import image

    names = {"cheng2020-serial": "cheng2020-anchor", "cheng2020-serial-attention": "cheng2020-attn"}
    for name, system in zoo.SYSTEMS.items():
        if (theirs := image.cfgs.get(names.get(name, name))) is not None:
            assert system.channels == tuple(theirs[quality] for quality in sorted(theirs))
