"""The transforms' kernels against their references, and the transforms made of them against the model's modules.

Without a GPU the kernels run in Triton's interpreter.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_releases import limited
from torch import Tensor

from fastcodec.constants import MIN_QUALITY
from fastcodec.engines import gpu_transforms as transforms_module
from fastcodec.engines.gpu_transforms import Transforms
from fastcodec.kernels.triton.pixels import from_pixels, from_pixels_reference, to_pixels, to_pixels_reference
from fastcodec.kernels.triton.pointwise import Expansion, Layer, QualityScale, expand, expand_reference
from fastcodec.kernels.triton.residual import BlockWeights, residual_block, residual_block_reference
from fastcodec.kernels.triton.upsample import upsample_2, upsample_2_reference
from fastcodec.models.swift import release as released
from fastcodec.models.swift.network import Block, quality_position

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []  # so that `pytest -m gpu` runs them all
LIMITS = pytest.mark.parametrize("limit", [math.inf, 1.5])  # none, and one that the random features exceed
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
GUARD = 4096  # elements around a tensor


@pytest.fixture(autouse=True)
def _float32_convolutions():
    """On a GPU PyTorch's convolutions round float32 to TF32 unless they are told not to."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


class Tensors:
    """Random tensors, each in the middle of others: what is read beside an input is NaN and spoils a result, what is
    written beside an output shows."""

    def __init__(self, seed: int = 0):
        self._generator = torch.Generator().manual_seed(seed)
        self._guards: list[Tensor] = []

    def random(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return self._guarded((torch.randn(shape, generator=self._generator) * scale).to(dtype), torch.nan)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._guarded(torch.full(shape, torch.nan).to(dtype), 0)

    def pixels(self, *shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=self._generator).to(DEVICE)

    def weights(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return self.random(*shape, dtype=dtype, scale=shape[-1] ** -0.5)

    def intact(self) -> bool:
        return all(guard.eq(0).all() or guard.isnan().all() for guard in self._guards)

    def _guarded(self, values: Tensor, around: float) -> Tensor:
        memory = torch.full((GUARD + values.numel() + GUARD,), around, dtype=values.dtype, device=DEVICE)
        middle = memory[GUARD:-GUARD].view(values.shape)
        middle.copy_(values)
        self._guards += [memory[:GUARD], memory[-GUARD:]]
        return middle


def assert_like_reference(
    run: Callable[..., None], reference: Callable[..., None], *arguments, outputs: list[Tensor], dtype: torch.dtype
):
    """Both write `outputs`; what they write must agree to some units in the last place of the activations' dtype."""
    run(*arguments)
    results = [output.clone() for output in outputs]
    reference(*arguments)
    tolerance = 3e-5 if dtype == torch.float32 else 6e-3
    for result, output in zip(results, outputs, strict=True):
        torch.testing.assert_close(result, output, rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("shape, channels", [((1,), 32), ((3, 11), 64), ((2, 5, 7), 32)])
def test_expand(shape: tuple[int, ...], channels: int, dtype: torch.dtype):
    tensors = Tensors()
    x, weight = tensors.random(*shape, 64, dtype=dtype), tensors.weights(channels, 64, dtype=dtype)
    out = tensors.empty(*shape, channels, dtype=dtype)
    assert_like_reference(
        expand, expand_reference, x, weight, tensors.random(channels), out, outputs=[out], dtype=dtype
    )
    assert tensors.intact()


def block_weights(tensors: Tensors, channels: int, dtype: torch.dtype) -> BlockWeights:
    return BlockWeights(
        tensors.random(9, channels, scale=0.5),
        tensors.random(channels),
        tensors.weights(channels, channels, dtype=dtype),
        tensors.random(channels),
        tensors.weights(2 * channels, channels, dtype=dtype),
        tensors.random(2 * channels),
        tensors.weights(channels, channels, dtype=dtype),
        tensors.random(channels),
    )


def expansion(tensors: Tensors, out: Tensor) -> Expansion:
    channels = out.shape[-1]
    return Expansion(tensors.weights(channels, channels, dtype=out.dtype), tensors.random(channels), out)


def scaling(tensors: Tensors, channels: int, rows: list[int]) -> QualityScale:
    return QualityScale(tensors.random(5, channels), torch.tensor(rows, dtype=torch.int32, device=DEVICE))


@DTYPES
@LIMITS
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 32), (2, 1, 9, 32), (1, 10, 1, 32), (2, 9, 10, 32), (1, 5, 6, 128), (1, 3, 5, 256)]
)
@pytest.mark.parametrize("ending", ["alone", "expanded", "scaled"])
def test_residual_block(shape: tuple[int, ...], ending: str, limit: float, dtype: torch.dtype):
    tensors, channels = Tensors(), shape[-1]
    expanded, trunk = tensors.random(*shape, dtype=dtype), tensors.random(*shape, dtype=dtype)
    out = tensors.empty(*shape, dtype=torch.float32 if ending == "scaled" else dtype)
    arguments, outputs = [expanded, trunk, block_weights(tensors, channels, dtype), limit, out], [out]
    if ending == "expanded":
        outputs.append(tensors.empty(*shape, dtype=dtype))
        arguments.append(expansion(tensors, outputs[1]))
    elif ending == "scaled":
        quality = torch.arange(shape[0], dtype=torch.int32, device=DEVICE).flip(0)
        arguments.append(QualityScale(tensors.random(shape[0] + 1, channels), quality))
    assert_like_reference(residual_block, residual_block_reference, *arguments, outputs=outputs, dtype=dtype)
    if ending != "scaled":
        assert (out.abs().max() == limit) == math.isfinite(limit)
    assert tensors.intact()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # NumPy's, interpreting
def test_what_would_overflow_is_clamped_first():
    """A gated product beyond fp16's range, and a gate so far below zero that its exponential is infinite."""
    tensors, channels, dtype = Tensors(), 32, torch.float16
    weights = block_weights(tensors, channels, dtype)
    values, gates = weights.gate_bias.chunk(2)
    values.copy_(torch.tensor([30000.0, -30000.0]).repeat(channels // 2))
    gates.copy_(torch.tensor([30000.0, 30000.0, -30000.0, -30000.0]).repeat(channels // 4))
    expanded, trunk, out = (tensors.random(1, 3, 4, channels, dtype=dtype) for _ in range(3))
    arguments = expanded, trunk, weights, 64.0, out
    assert_like_reference(residual_block, residual_block_reference, *arguments, outputs=[out], dtype=dtype)
    assert out.isfinite().all()
    residual_block(expanded, trunk, weights, math.inf, out)
    assert not out.isfinite().all()


@DTYPES
@LIMITS
@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (2, 7, 3, 64), (3, 9, 8, 32)])
def test_upsample_2(shape: tuple[int, ...], limit: float, dtype: torch.dtype):
    tensors, (batch, height, width, inputs), channels = Tensors(), shape, 32
    outputs = [tensors.empty(batch, 2 * height, 2 * width, channels, dtype=dtype) for _ in range(2)]
    assert_like_reference(
        upsample_2,
        upsample_2_reference,
        tensors.random(*shape, dtype=dtype),
        Layer(tensors.weights(4, channels, inputs, dtype=dtype), tensors.random(4, channels)),
        scaling(tensors, channels, [4, 0, 2][:batch]),
        limit,
        outputs[0],
        expansion(tensors, outputs[1]),
        outputs=outputs,
        dtype=dtype,
    )
    assert (outputs[0].abs().max() == limit) == math.isfinite(limit)
    assert tensors.intact()


@DTYPES
@pytest.mark.parametrize("colours", [3, 1])
@pytest.mark.parametrize("height, width", [(1, 1), (16, 32), (17, 9), (37, 100)])
def test_from_pixels(height: int, width: int, colours: int, dtype: torch.dtype):
    tensors, batch, channels = Tensors(), 2, 32
    rows, columns = -(-height // 16) * 2, -(-width // 16) * 2
    outputs = [tensors.empty(batch, rows, columns, channels, dtype=dtype) for _ in range(2)]
    assert_like_reference(
        from_pixels,
        from_pixels_reference,
        tensors.pixels(batch, height + 3, width + 5, colours)[:, 2:-1, 4:-1],
        Layer(tensors.weights(3, channels, 64, dtype=dtype), tensors.random(channels)),
        scaling(tensors, channels, [4, 1]),
        outputs[0],
        expansion(tensors, outputs[1]),
        outputs=outputs,
        dtype=dtype,
    )
    assert tensors.intact()


@DTYPES
@pytest.mark.parametrize(
    "height, width, top, left", [(1, 1, 0, 0), (32, 96, 0, 0), (31, 93, 0, 0), (9, 90, 5, 3), (1, 8, 31, 88)]
)
def test_to_pixels(height: int, width: int, top: int, left: int, dtype: torch.dtype):
    tensors = Tensors()
    x = tensors.random(2, 4, 12, 192, dtype=dtype, scale=0.4)
    bias = tensors.random(192, scale=0.2) + 0.5
    whole = tensors.pixels(2, height + 2, width + 3, 3)
    before, expected = whole.clone(), whole.clone()
    part = (slice(None), slice(1, -1), slice(2, -1))
    to_pixels_reference(x, bias, expected[part], top, left)
    to_pixels(x, bias, whole[part], top, left)
    assert torch.equal(whole, expected)
    assert not torch.equal(whole[part], before[part])
    expected[part] = before[part]
    assert torch.equal(expected, before)
    assert tensors.intact()


def test_to_pixels_rounds_half_to_even_and_survives_what_is_no_number():
    """Exactly as the codec rounds: (x * 255).round().clamp(0, 255)."""
    levels = np.arange(-2, 258, dtype=np.float32) + np.float32(0.5)
    near = np.float32(levels / np.float32(255))
    near = np.concatenate([near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))])
    values = torch.from_numpy(np.resize(near, 6 * 192)).view(1, 2, 3, 192).to(DEVICE)
    assert ((values * 255) % 1 == 0.5).any()
    pixels = torch.empty(1, 16, 24, 3, dtype=torch.uint8, device=DEVICE)
    to_pixels(values, torch.zeros(192, device=DEVICE), pixels)
    shuffled = F.pixel_shuffle(values.permute(0, 3, 1, 2), 8).permute(0, 2, 3, 1)
    assert torch.equal(pixels.float(), (shuffled * 255).round().clamp(0, 255))
    for value, level in ((torch.nan, 0), (torch.inf, 255), (-torch.inf, 0), (1e30, 255)):
        to_pixels(torch.full_like(values, value), torch.zeros(192, device=DEVICE), pixels)
        assert (pixels == level).all()


def test_operators_are_registered_as_they_behave():
    tensors, dtype, c = Tensors(), torch.float16, 32
    activation = lambda: tensors.random(1, 2, 2, c, dtype=dtype)  # noqa: E731
    weight, bias = tensors.weights(c, c, dtype=dtype), tensors.random(c)
    quality, scale = torch.zeros(1, dtype=torch.int32, device=DEVICE), tensors.random(2, c)
    block = list(block_weights(tensors, c, dtype))
    absent = [None] * 5
    following, scaled = (weight, bias, activation(), None, None), (None, None, None, scale, quality)
    cases = [
        ("expand", (activation(), weight, bias, activation())),
        *(
            ("residual_block", (activation(), activation(), block, 1.0, activation(), *ending))
            for ending in (absent, following, scaled)
        ),
        ("to_pixels", (tensors.random(1, 2, 2, 192), tensors.random(192), tensors.pixels(1, 9, 16, 3), 2, 0)),
    ]
    larger = [tensors.random(1, 4, 4, c, dtype=dtype) for _ in range(2)]
    up = (tensors.weights(4, c, c, dtype=dtype), tensors.random(4, c), scale, quality, math.inf)
    cases.append(("upsample_2", (activation(), *up, larger[0], weight, bias, larger[1])))
    head = (tensors.weights(3, c, 64, dtype=dtype), bias, scale, quality)
    cases.append(("from_pixels", (tensors.pixels(1, 16, 9, 3), *head, activation(), weight, bias, activation())))
    for name, arguments in cases:
        torch.library.opcheck(getattr(torch.ops.fastcodec, name).default, arguments)


def test_tensors_that_do_not_fit_are_refused():
    tensors, c = Tensors(), 32
    x, weight, bias = tensors.random(1, 2, 2, c), tensors.weights(c, c, dtype=torch.float32), tensors.random(c)
    features, features_bias = tensors.random(1, 2, 2, 192), tensors.random(192)
    for refused, reason in (
        (lambda: expand(x, weight.half(), bias, x), "x must be"),
        (lambda: expand(x.permute(0, 2, 1, 3), weight, bias, torch.empty_like(x)), "not contiguous"),
        (lambda: to_pixels(features, features_bias, tensors.pixels(1, 17, 16, 3)), "no part of 16 x 16"),
        (lambda: to_pixels(features, features_bias, tensors.pixels(1, 8, 8, 3), 9, 0), "no part of 16 x 16"),
        (lambda: to_pixels(features, features_bias, tensors.pixels(1, 8, 16, 3)[:, :, ::2]), "follow each other"),
        (lambda: to_pixels(features, features_bias, tensors.pixels(1, 8, 8, 4)), r"3 or 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            refused()


# ---- the transforms


# The limits: none, and one that photographs' features reach.
@pytest.fixture(scope="module", params=[None, 2.0], ids=["unlimited", "limited"])
def model(request: pytest.FixtureRequest) -> released.Model:
    return limited(request.param)


@pytest.fixture(scope="module")
def crops(photographs: dict[str, np.ndarray]) -> Tensor:
    """Two crops of photographs, uint8 [2, 29, 41, 3]."""
    parts = [photographs[name][100:129, 200:241] for name in ("astronaut", "coffee")]
    return torch.from_numpy(np.stack(parts)).to(DEVICE)


QUALITIES = (10, 100)  # of the two crops


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return torch.tensor(QUALITIES, dtype=torch.int32, device=DEVICE) - MIN_QUALITY


def position() -> Tensor:
    return torch.tensor([quality_position(quality) for quality in QUALITIES])


def scaled_latents(model: released.Model, crops: Tensor, rows: Tensor) -> Tensor:
    """What the model's g_a gives of the crops, times the gain: float32 [2, M, h, w]."""
    x = crops.cpu().permute(0, 3, 1, 2).float() / 255
    x = F.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16), mode="replicate")
    return model.g_a(x, position()) * model.gain[rows.cpu().long(), :, None, None]


def decoded_latents(model: released.Model, crops: Tensor, rows: Tensor) -> Tensor:
    """Rounded latents behind the inverse gain: float32 [2, M, h, w]."""
    inverse_gain = model.inverse_gain[rows.cpu().long(), :, None, None]
    return scaled_latents(model, crops, rows).round() * inverse_gain


@pytest.mark.parametrize("dtype, moved", [(torch.float32, 0.02), (torch.float16, 0.4)])
def test_synthesis_is_that_of_the_model(
    model: released.Model, crops: Tensor, rows: Tensor, dtype: torch.dtype, moved: float
):
    """moved: by how much a value may differ before it is rounded to a level, from float32's."""
    y = decoded_latents(model, crops, rows)
    expected = model.g_s(y, position()).permute(0, 2, 3, 1)[:, :29, :41] * 255
    latents = y.permute(0, 2, 3, 1).to(DEVICE, dtype).contiguous()
    transforms, pixels = Transforms(model, DEVICE, dtype), torch.empty_like(crops)
    transforms.synthesis(latents, rows, pixels)
    result = pixels.cpu().float()
    assert (result - expected.clamp(0, 255)).abs().max() <= 0.5 + moved
    assert (result - expected.round().clamp(0, 255)).abs().max() <= 1
    if model.config.limit is None:
        assert (result[1] - crops[1].cpu()).abs().mean() < 3  # it is the photograph

    part = torch.empty(1, 7, 9, 3, dtype=torch.uint8, device=DEVICE)
    transforms.synthesis(latents[1:], rows[1:], part, 18, 30)
    assert torch.equal(part, pixels[1:, 18:25, 30:39])


@pytest.mark.parametrize("dtype, moved", [(torch.float32, 1e-3), (torch.float16, 0.15)])
def test_analysis_is_that_of_the_model(
    model: released.Model, crops: Tensor, rows: Tensor, dtype: torch.dtype, moved: float
):
    """moved: by how much of a quantisation step a latent may differ."""
    expected = scaled_latents(model, crops, rows).permute(0, 2, 3, 1)
    transforms = Transforms(model, DEVICE, dtype)
    y = transforms.analysis(crops, rows)
    assert y.dtype == torch.float32
    assert (y.cpu() - expected).abs().max() <= moved
    gray = transforms.analysis(crops[:1, :, :, :1].contiguous(), rows[:1])
    assert torch.equal(gray, transforms.analysis(crops[:1, :, :, :1].expand(-1, -1, -1, 3).contiguous(), rows[:1]))


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 0.0), (torch.float16, 0.01)])
def test_hyper_analysis_is_that_of_the_model(
    model: released.Model, crops: Tensor, rows: Tensor, dtype: torch.dtype, allowed: float
):
    """allowed: the share of hyper latents that may be rounded to the other side."""
    y = scaled_latents(model, crops, rows).contiguous(memory_format=torch.channels_last)
    padded = F.pad(y, (0, -y.shape[3] % 4, 0, -y.shape[2] % 4), mode="replicate")
    expected = model.h_a(padded, position()).round().clamp(-127, 127).to(torch.int16).permute(0, 2, 3, 1)
    z = Transforms(model, DEVICE, dtype).hyper_analysis(y.permute(0, 2, 3, 1).to(DEVICE), rows)
    assert z.dtype == torch.int16
    assert z.is_contiguous()
    assert z.shape == expected.shape
    assert (z.cpu() - expected).abs().max() <= (1 if allowed else 0)
    assert (z.cpu() != expected).float().mean() <= allowed


def test_transforms_of_one_pixel(model: released.Model, crops: Tensor, rows: Tensor):
    transforms, image = Transforms(model, DEVICE), crops[:, :1, :1]
    expected = scaled_latents(model, image, rows).permute(0, 2, 3, 1)
    y = transforms.analysis(image, rows)
    assert y.shape == (2, 1, 1, model.config.latents)
    assert (y.cpu() - expected).abs().max() <= 0.15
    assert transforms.hyper_analysis(y, rows).shape == (2, 1, 1, model.config.hyper_latents)
    y = decoded_latents(model, image, rows)
    pixels = torch.empty(2, 1, 1, 3, dtype=torch.uint8, device=DEVICE)
    transforms.synthesis(y.permute(0, 2, 3, 1).to(DEVICE, torch.float16).contiguous(), rows, pixels)
    expected = model.g_s(y, position())[:, :, 0, 0] * 255
    assert (pixels[:, 0, 0].cpu() - expected.round().clamp(0, 255)).abs().max() <= 1


def test_other_types_are_refused(model: released.Model):
    with pytest.raises(ValueError, match="bfloat16"):
        Transforms(model, DEVICE, torch.bfloat16)


@pytest.mark.gpu
def test_transforms_in_a_graph(model: released.Model, crops: Tensor, rows: Tensor):
    """Nothing in them waits for the GPU, so they can be captured; a replay gives what the call gives."""
    transforms = Transforms(model, DEVICE)
    latents = decoded_latents(model, crops, rows).permute(0, 2, 3, 1).to(DEVICE, torch.float16).contiguous()
    eager, replayed = torch.empty_like(crops), torch.empty_like(crops)

    def run(pixels: Tensor) -> Tensor:
        transforms.synthesis(latents, rows, pixels)
        return transforms.hyper_analysis(transforms.analysis(crops, rows), rows)

    expected = run(eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = run(replayed)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(replayed, eager)
    assert torch.equal(z, expected)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's, interpreting
@pytest.mark.parametrize("factor", [1, 50])
def test_latents_that_no_encoder_made_stay_finite_in_fp16(rows: Tensor, factor: float, monkeypatch: pytest.MonkeyPatch):
    """factor: of the gates' weights and of those behind them. Features at their limit give values of some hundreds of
    white, which fp16 has to a fraction of white, so pixels that are neither black nor white may be anything."""
    model = limited(64.0)
    for module in model.g_s.modules():
        if isinstance(module, Block):
            module.gate.weight.mul_(factor)
            module.merge.weight.mul_(factor)
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (2, model.config.latents, 2, 3), generator=generator) * 131070.0 - 65535
    expected = (model.g_s(y, position()).permute(0, 2, 3, 1) * 255).round().clamp(0, 255)
    values, inner = [], transforms_module._convolution

    def watched(*arguments, **options) -> Tensor:
        values.append(inner(*arguments, **options))
        return values[-1]

    monkeypatch.setattr(transforms_module, "_convolution", watched)
    for dtype, agreeing in ((torch.float32, 0.99), (torch.float16, 0.9)):
        latents = y.clamp(-65504, 65504).permute(0, 2, 3, 1).to(DEVICE, dtype).contiguous()
        before, pixels = latents.clone(), torch.empty(2, 32, 48, 3, dtype=torch.uint8, device=DEVICE)
        Transforms(model, DEVICE, dtype).synthesis(latents, rows, pixels)
        assert torch.equal(latents, before), "the latents are the caller's"
        assert values.pop().isfinite().all()
        share = ((pixels.cpu() - expected).abs() <= 1).float().mean()
        if factor == 1:
            assert share >= agreeing
