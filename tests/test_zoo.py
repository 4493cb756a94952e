"""The papers' systems on real files: coding is exact, its rate is the estimate, layers are the papers' formulas.

tests/test_zoo_compressai.py compares them with CompressAI itself.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcodec import container
from fastcodec.codec import Codec
from fastcodec.engines.whole_image import network_input
from fastcodec.errors import CorruptStreamError, ImageError, ModelMismatchError
from fastcodec.images import Picture, to_picture
from fastcodec.kernels import checkerboard, rans
from fastcodec.models import zoo
from fastcodec.models.zoo.base import CompressionModel, channels_last
from fastcodec.models.zoo.context import RASTER_TAPS, mask_of
from fastcodec.models.zoo.entropy_bottleneck import EntropyBottleneck
from fastcodec.models.zoo.gaussian_conditional import GaussianConditional, gaussian_likelihood
from fastcodec.models.zoo.he2021 import RandomMask, anchor_mask
from fastcodec.models.zoo.layers import GDN, conv, deconv
from fastcodec.models.zoo.rounded_gaussian import RoundedGaussianConditional

pytestmark = pytest.mark.usefixtures("one_thread")

SINGLE = [name for name in zoo.SYSTEMS if "mixture" not in name]  # one Gaussian a latent; tests/test_zoo_mixture.py
WITH_CONTEXT = [name for name in SINGLE if name.startswith(("mbt2018-c", "cheng", "random")) or name == "mbt2018"]
VARIABLE = [name for name in SINGLE if name.endswith("-vbr")]
SERIAL = ["mbt2018", "cheng2020-serial"]
PARALLEL = ["mbt2018-checkerboard", "cheng2020-checkerboard"]


def as_input(pixels: np.ndarray) -> Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255


def lively(name: str, pixels: np.ndarray, seed: int = 0, channels=(16, 24), **options) -> CompressionModel:
    """A system with random weights whose latents of an image are spread over some levels, as a trained one's are,
    and whose parameters are roughly those of its latents."""
    torch.manual_seed(seed)
    if name.startswith("elic"):
        options.setdefault("groups", (2, 2, 4, 8, channels[1] - 16))
    model = zoo.SYSTEMS[name].model(*channels[: len(zoo.SYSTEMS[name].channels[0])], **options)
    with torch.no_grad():
        x = as_input(pixels)
        last = [layer for layer in model.g_a if isinstance(layer, nn.Conv2d)][-1]
        last.weight.mul_(3 / model.g_a(x).std())
        y = model.g_a(x)
        if hasattr(model, "h_a"):
            model.h_a[-1].weight.mul_(2 / model.hyper_analysis(y).std())
            if hasattr(model, "groups"):
                heads = [group.entropy_parameters[4] for group in model.groups]
            else:
                heads = [model.entropy_parameters[-1] if hasattr(model, "entropy_parameters") else model.h_s[4]]
            sizes = getattr(model, "sizes", y.shape[1])
            for head, part in zip(heads, y.split(sizes, 1), strict=True):
                spread, centre = part.std((0, 2, 3)), part.mean((0, 2, 3))
                both = [centre, spread] if name == "elic2022-chandelier" else [spread, centre]
                head.weight.mul_(0.3)
                head.bias.copy_(torch.cat(both) if len(head.bias) > len(spread) else spread)
        model.entropy_bottleneck.quantiles[:, 0, 1] += torch.rand(model.entropy_bottleneck.channels) - 0.5
    model.update()
    return model.requires_grad_(False).eval()


def recorded(model: CompressionModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
    """The parameters that the encoder and the decoder hand to the conditional, in the order of the passes."""
    conditional, seen = model.gaussian_conditional, {"encode": [], "decode": []}
    for what in seen:
        plain = getattr(conditional, what)

        def recording(first, parameters, plain=plain, what=what):
            seen[what].append(parameters)
            return plain(first, parameters)

        monkeypatch.setattr(conditional, what, recording)
    return seen


@pytest.fixture(scope="module")
def photograph(photographs) -> np.ndarray:
    return np.ascontiguousarray(photographs["chelsea"][40:240, 90:346])


@pytest.mark.parametrize(
    "name, options",
    [*((name, {}) for name in SINGLE), *((name, {"rounding": "latents"}) for name in ["mbt2018-mean", *PARALLEL])],
)
def test_files(name, options, photograph):
    # A rate needs some bytes to be judged by; serial models are slow, those with attention no other entropy model.
    small = name == "mbt2018" or "serial" in name or "attention" in name
    pixels = photograph[:70, :90] if small else photograph
    model = lively(name, photograph[:128, :128], **options)
    codec = Codec(model)
    encoded = codec.encode(to_picture(pixels))
    assert len(encoded) <= 1.01 * encoded.estimated_bits / 8 + 100
    assert encoded.estimated_bits > 8 * (200 if small else 1000)

    arrived = []
    hook = model.g_s.register_forward_pre_hook(lambda _, arguments: arrived.append(arguments[0]))
    decoded = codec.decode(encoded, out="numpy")
    hook.remove()
    x = network_input(codec.model, pixels)
    with torch.inference_mode():
        coded = model.at(codec.quality).encode_latents(model.g_a(channels_last(x)))
        expected = (model.g_s(coded.y_hat).clamp(0, 1) * 255).round()[0, :, : pixels.shape[0], : pixels.shape[1]]
    assert torch.equal(arrived[0], coded.y_hat)
    assert np.abs(decoded - expected.permute(1, 2, 0).numpy()).max() <= 1
    assert decoded.shape == pixels.shape
    info = container.info(encoded)
    assert not info.portable
    assert info.tiles == 1


@pytest.mark.parametrize("name", PARALLEL)
def test_one_pass_encoding(name, photograph, monkeypatch):
    """Where y^ = round(y), the parameters of equation 11 are those of two-pass decoding: bit for bit as we compute
    them, and to float32's precision as it is written."""
    model = lively(name, photograph[:64, :128], rounding="latents")
    seen = recorded(model, monkeypatch)
    x = as_input(photograph[:64, :128])
    compressed = model.compress(x)
    model.decompress(compressed.payload, compressed.shape)
    assert [p.shape for p in seen["encode"]] == [(16, p.shape[1]) for p in seen["encode"]]
    assert len(seen["encode"]) == 2
    for ours, theirs in zip(seen["encode"], seen["decode"], strict=True):
        assert torch.equal(ours, theirs)

    y = model.g_a(x)
    _, z_hat, _ = model.entropy_bottleneck.encode(model.hyper_analysis(y))
    psi = model.h_s(z_hat)
    at_once = model.parameters_while_training(psi, torch.round(y))
    for ours, dense in zip(seen["encode"], checkerboard.split(at_once.permute(0, 2, 3, 1)), strict=True):
        torch.testing.assert_close(ours, dense[0], rtol=1e-4, atol=1e-4)


def test_the_context_of_anchors_is_exactly_zero(photograph):
    model = lively("mbt2018-checkerboard", photograph[:64, :64])
    model.context_prediction.bias.fill_(0.3)
    seen = []
    model.merged = lambda psi, phi: seen.append(phi) or torch.cat([psi, phi], 1)
    y = torch.randn(1, 24, 5, 7)
    psi = torch.randn(1, 48, 5, 7)
    model.parameters_while_training(psi, y)
    model.encode_given(y, psi)
    dense, anchors, others = seen
    assert not dense[:, :, anchor_mask(5, 7, y) == 1].any()
    assert not anchors.any()
    assert others.shape == (17, 48)
    assert others.any()


@pytest.mark.parametrize("name", SERIAL)
def test_serial_context(name, photograph, monkeypatch):
    """Cropping a position's visible neighbours is the masked convolution, and the decoder does as the encoder did."""
    model = lively(name, photograph[:64, :128])
    seen = recorded(model, monkeypatch)
    x = as_input(photograph[:64, :128])
    compressed = model.compress(x)
    model.decompress(compressed.payload, compressed.shape)
    encoder, decoder = torch.cat(seen["encode"]), torch.cat(seen["decode"])
    assert len(encoder) == 4 * 8
    assert torch.equal(encoder, decoder)
    coded = model.encode_latents(model.g_a(x))
    _, z_hat, _ = model.entropy_bottleneck.encode(model.hyper_analysis(model.g_a(x)))
    dense = model.parameters_while_training(model.h_s(z_hat), coded.y_hat)
    torch.testing.assert_close(encoder, dense[0].flatten(1).T, rtol=1e-4, atol=1e-4)


def test_order_of_the_parameter_network_s_input():
    psi, phi = torch.zeros(1, 4), torch.ones(1, 4)
    for name in WITH_CONTEXT:
        merged = zoo.SYSTEMS[name].model.merged(zoo.SYSTEMS[name].model, psi, phi)
        first = 1 if "cheng2020-checkerboard" in name else 0
        assert merged.tolist() == [[first] * 4 + [1 - first] * 4]


# --- random masks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("like, taps", [("mbt2018", RASTER_TAPS), ("mbt2018-checkerboard", checkerboard.LIVE_TAPS)])
def test_a_mask_codes_as_the_model_that_has_it(like, taps, photograph):
    pixels = photograph[:64, :64]
    model = lively("random-mask", pixels)
    other = lively(like, pixels)
    state = model.state_dict()
    state["context_prediction.mask"] = mask_of(taps).expand_as(state["context_prediction.mask"])
    other.load_state_dict(state)
    model.set_mask(mask_of(taps))
    ours, theirs = model.compress(as_input(pixels)), other.compress(as_input(pixels))
    assert ours == theirs
    assert torch.equal(model.decompress(ours.payload, ours.shape), other.decompress(theirs.payload, theirs.shape))


def test_masks_that_cannot_be_decoded_can_be_measured(photograph):
    x = as_input(photograph[:64, :64])
    model = lively("random-mask", photograph[:64, :64])
    every = torch.ones(5, 5)
    every[2, 2] = 0
    model.set_mask(every)
    with pytest.raises(ValueError, match="measured, not coded"):
        model.compress(x)
    with pytest.raises(ValueError, match="refers to itself"):
        model.set_mask(torch.ones(5, 5))
    y_bits, z_bits = model.measure(x, every)
    without, same_z_bits = model.measure(x, torch.zeros(5, 5))
    assert z_bits == same_z_bits
    assert y_bits != without


def test_measured_rate_is_the_coded_one(photograph):
    x = as_input(photograph[:64, :64])
    model = lively("random-mask", photograph[:64, :64], rounding="latents")
    model.set_mask(mask_of(RASTER_TAPS))
    assert sum(model.measure(x, model.mask)) == pytest.approx(model.compress(x).estimated_bits, rel=1e-4)


def test_training_draws_masks(photograph):
    model = RandomMask(8, 12).train()
    seen = []
    model.context_prediction.forward = lambda y, mask: seen.append(mask) or torch.zeros(1, 24, *y.shape[2:])
    for _ in range(40):
        model.parameters_while_training(torch.zeros(1, 24, 4, 4), torch.zeros(1, 12, 4, 4))
    masks = torch.stack(seen)
    assert not masks[:, 2, 2].any()
    assert masks.sum() / (40 * 24) == pytest.approx(0.5, abs=0.07)
    assert len(masks.flatten(1).unique(dim=0)) == 40


# --- layers and entropy models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_is_its_formula(inverse):
    torch.manual_seed(3)
    layer = GDN(5, inverse)
    beta, gamma = torch.rand(5, dtype=torch.float64) + 0.5, torch.rand(5, 5, dtype=torch.float64)
    layer.beta.data, layer.gamma.data = torch.sqrt(beta).float(), torch.sqrt(gamma).float()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    norm = torch.empty_like(x)
    for i in range(5):
        norm[:, i] = (beta[i] + sum(gamma[i, j] * x[:, j] ** 2 for j in range(5))).sqrt()
    torch.testing.assert_close(layer(x.float()).double(), x * norm if inverse else x / norm, rtol=1e-5, atol=1e-6)


def test_transposed_convolution_to_pixels_is_its_formula():
    """The two forms, that of training and that of coding."""
    torch.manual_seed(8)
    layer, x = deconv(7, 3), torch.randn(2, 7, 5, 6)
    expected = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=2, output_padding=1)
    assert torch.equal(layer(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_strided_pointwise_convolution_is_its_formula():
    """Learning at a size where PyTorch's own gradient would destroy the heap: nothing but the process could tell."""
    layer = conv(3, 128, 1, 2)
    x = torch.rand(4, 3, 127, 128).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        coding = layer(x)
    y = layer(x)
    assert torch.equal(y, coding)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected = torch.einsum("bohw,bihw->oi", gradient.double(), x[:, :, ::2, ::2].double())
    assert torch.allclose(layer.weight.grad[:, :, 0, 0].double(), expected, rtol=1e-4, atol=1e-3)
    assert torch.allclose(layer.bias.grad, gradient.sum((0, 2, 3)), rtol=1e-4, atol=1e-3)


def test_bounds_let_values_come_back():
    layer = GDN(2)
    layer.beta.data.fill_(-1.0)
    layer(torch.ones(1, 2, 1, 1)).sum().backward()
    assert (layer.beta.grad < 0).all()  # a smaller output needs a larger beta: up from the bound
    layer.beta.grad = None
    (-layer(torch.ones(1, 2, 1, 1)).sum()).backward()
    assert (layer.beta.grad == 0).all()


def test_factorised_prior_is_a_distribution():
    torch.manual_seed(4)
    model = EntropyBottleneck(3)
    with torch.no_grad():
        for factor in model.factors:
            factor.uniform_(-1, 1)
        for matrix in model.matrices:
            matrix.add_(torch.randn_like(matrix) * 0.3)
    symbols = torch.arange(-3000, 3001, dtype=torch.float64).expand(3, 1, -1)
    mass = model.likelihood(symbols)
    assert (mass >= 0).all()
    torch.testing.assert_close(mass.sum(2), torch.ones(3, 1, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    model.fit_quantiles()
    reached = torch.sigmoid(model.logits(model.quantiles.detach().double()))[:, 0]
    torch.testing.assert_close(reached[:, 1], torch.full((3,), 0.5, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reached[:, 0], torch.full((3,), 5e-10, dtype=torch.float64), rtol=1e-2, atol=0)


def test_more_channels_than_a_set_has_tables():
    torch.manual_seed(5)
    model = EntropyBottleneck(300)
    model.update()
    z = torch.randn(1, 300, 2, 3) * 4
    z[0, 299, 1, 2] = 1000.0  # far beyond its table: an escape
    passes, z_hat, bits = model.encode(z)
    assert [p.symbols.shape for p in passes] == [(6, 256), (6, 44)]
    (payload,) = rans.encode([passes])
    decoder = rans.Decoder([payload])
    assert torch.equal(model.decode(decoder, 2, 3), z_hat)
    decoder.finish()
    assert 8 * len(payload) <= 1.01 * bits + 8 * 30


@pytest.mark.parametrize("conditional", [GaussianConditional, RoundedGaussianConditional])
@pytest.mark.parametrize("low, high", [(0.15, 0.6), (0.6, 4.0), (4.0, 250.0)])
def test_rate_of_gaussians(conditional, low, high):
    """Latents that are drawn from their model cost what it says, tables and coder included, to 1 %."""
    torch.manual_seed(6)
    model = conditional()
    model.update()
    scales = torch.exp(torch.empty(500, 60).uniform_(math.log(low), math.log(high)))
    means = torch.randn(500, 60) * 5
    coded, y_hat, bits = model.encode(means + scales * torch.randn(500, 60), torch.cat([scales, means], 1))
    (payload,) = rans.encode([[coded]])
    decoder = rans.Decoder([payload])
    assert torch.equal(model.decode(decoder, torch.cat([scales, means], 1)), y_hat)
    decoder.finish()
    assert 8 * len(payload) == pytest.approx(bits, rel=0.01)
    if conditional is RoundedGaussianConditional:
        assert torch.equal(y_hat, y_hat.round())


def test_gaussian_likelihood_sums_to_one():
    scales = torch.tensor([0.11, 1.0, 30.0], dtype=torch.float64)
    symbols = torch.arange(-400, 401, dtype=torch.float64)[:, None]
    mass = gaussian_likelihood(symbols - 0.3, scales)
    torch.testing.assert_close(mass.sum(0), torch.ones(3, dtype=torch.float64))


# --- weights and files ------------------------------------------------------------------------------------------------


def test_older_layouts_of_checkpoints(photograph):
    """What CompressAI's checkpoints of all ages look like: other names, a wrapper's prefix, constants not there yet."""
    model = lively("cheng2020-serial", photograph[:64, :64])
    state = model.state_dict()
    absent = ("bound", "target", "scale_bound")
    for matrix, skip in (("_matrix{}", "skip"), ("_matrices.{}", "downsample")):
        older = {}
        for name, tensor in state.items():
            if name.endswith(absent):
                continue
            for ours, singular in (("matrices", "_matrix"), ("biases", "_bias"), ("factors", "_factor")):
                theirs = singular + "{}" if matrix == "_matrix{}" else f"_{ours}.{{}}"
                for k in range(5):
                    name = name.replace(f"entropy_bottleneck.{ours}.{k}", f"entropy_bottleneck.{theirs.format(k)}")
            older["module." + name.replace(".skip.", f".{skip}.")] = tensor
        assert f"module.entropy_bottleneck.{matrix.format(3)}" in older
        loaded = zoo.load("cheng2020-serial", older).state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_foreign_weights(photograph):
    state = lively("mbt2018", photograph[:64, :64]).state_dict()
    with pytest.raises(RuntimeError, match="not a state dict of cheng2020"):
        zoo.load("cheng2020-serial", state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        zoo.load("mbt2018-mean", state)
    with pytest.raises(RuntimeError, match="Missing key"):
        zoo.load("mbt2018", {name: tensor for name, tensor in state.items() if name != "h_a.2.weight"})
    with pytest.raises(RuntimeError, match="mask is that of another context"):
        zoo.load("mbt2018-checkerboard", state)
    with pytest.raises(ValueError, match="no system named"):
        zoo.load("mbt2019", state)


def test_channels_of_a_quality():
    assert {name: len(system.channels) for name, system in zoo.SYSTEMS.items()} == {
        name: 1 if name in VARIABLE else 6 if "cheng" in name else 8 for name in zoo.SYSTEMS
    }
    with torch.device("meta"):
        model = zoo.create("mbt2018-checkerboard", 5)
        assert model.g_a[0].weight.shape == (192, 3, 5, 5)
        assert model.entropy_parameters[0].weight.shape == (1066, 1280, 1, 1)
        assert zoo.create("bls2017", 8).g_s[-1].weight.shape == (192, 3, 9, 9)
        with pytest.raises(ValueError, match="qualities 1 to 6"):
            zoo.create("cheng2020-serial", 7)
        with pytest.raises(ValueError, match="not trained here"):
            zoo.create("mbt2018-vbr", 1)


@pytest.fixture(scope="module")
def factorised(photograph) -> Codec:
    return Codec(lively("bmshj2018-factorized", photograph[:64, :64]))


def test_a_wide_image_is_one_tile(factorised):
    """A portable file of this size has two."""
    pixels = np.random.default_rng(0).integers(0, 256, (17, 1300, 3), dtype=np.uint8)
    data = factorised.encode(pixels)
    assert container.info(data).tiles == 1
    assert factorised.decode(data, out="numpy").shape == (17, 1300, 3)


def test_gray_and_metadata(factorised, photograph):
    picture = Picture(photograph[:20, :30, 0].copy(), icc=b"a profile", exif=b"II*\0", xmp=b"<x/>")
    decoded = factorised.decode(factorised.encode(picture), out="picture")
    assert decoded.pixels.shape == (20, 30)
    assert (decoded.icc, decoded.exif, decoded.xmp) == (picture.icc, picture.exif, picture.xmp)


def test_files_of_other_weights(factorised, photograph):
    data = factorised.encode(photograph[:20, :30])
    other = Codec(lively("bmshj2018-factorized", photograph[:64, :64], seed=1))
    with pytest.raises(ModelMismatchError, match=factorised.identity.hex()):
        other.decode(data)
    # The same weights under another rule of rounding are another model.
    models = [lively("mbt2018-mean", photograph[:64, :64], rounding=r) for r in ("residuals", "latents")]
    assert Codec(models[0]).identity != Codec(models[1]).identity


def test_damaged_payloads(factorised, photograph):
    model = factorised.model
    x = as_input(photograph[:32, :32])
    compressed = model.compress(x)
    for damaged in (compressed.payload[:-2], compressed.payload + b"\0\0", compressed.payload[:9]):
        with pytest.raises(CorruptStreamError):
            model.decompress(damaged, compressed.shape)
    with pytest.raises(ValueError, match="multiples of 16"):
        model.compress(x[:, :, :-1])
    with pytest.raises(ImageError, match="finite"):
        model.compress(x * float("nan"))


def test_no_tables_no_coding():
    with pytest.raises(RuntimeError, match="update"):
        zoo.SYSTEMS["bmshj2018-factorized"].model(8, 8).compress(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    "name",
    [
        "bls2017",
        "bmshj2018-hyperprior",
        "mbt2018-checkerboard",
        "cheng2020-serial-attention",
        "random-mask",
        "elic2022-official",
    ],
)
def test_training(name):
    """Every parameter but the quantiles, which are found afterwards, gets a gradient from rate and distortion."""
    torch.manual_seed(7)
    options = {"groups": (8, 16)} if name.startswith("elic") else {}
    model = zoo.SYSTEMS[name].model(*(16, 24)[: len(zoo.SYSTEMS[name].channels[0])], **options).train()
    x = torch.rand(2, 3, 64, 64)
    out = model(x)
    assert out["x_hat"].shape == x.shape
    assert out["y_bits"].shape == out["z_bits"].shape == (2,)
    (out["y_bits"].sum() + out["z_bits"].sum() + 1e4 * F.mse_loss(out["x_hat"], x)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == ["entropy_bottleneck.quantiles"]
    model.update(fit_quantiles=True)
    model.eval().compress(x[:1])
