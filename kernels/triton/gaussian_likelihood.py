"""Code length of a latent under a zero-mean Gaussian, with its gradients: what training evaluates for every latent.

    bits = -log2 max(p, 1e-9)
    p = Phi((residual + 1/2) / sigma) - Phi((residual - 1/2) / sigma)     N(0, sigma^2) * U(-1/2, 1/2) at residual
    sigma = least_scale * exp(index * log_step)

(He et al. 2021, equation 3.) Below the bound the gradient of p passes as if p were the bound, so that outliers still
learn.

PyTorch takes a dozen elementwise passes each way and keeps their results. Here each way is one pass: forward reads 8
bytes and writes 4 for an element in float32, backward reads 12 and writes 8, and nothing is kept but the inputs.

With m = |residual|, c = 1 / (sigma sqrt 2), a = (m - 1/2) c, b = (m + 1/2) c and erfcx(x) = exp(x^2) erfc(x):

    p     =   1/2 (erfc a - erfc b)  =  1/2 exp(-a^2) (erfcx a - q erfcx b),      q = exp(a^2 - b^2) = exp(-2 m c^2)
    dp/dm = - exp(-a^2) (1 - q) c / sqrt pi
    dp/dc =   exp(-a^2) ((1 + q) / 2 - m (1 - q)) / sqrt pi

erfcx falls slowly, from 1 towards 1 / (x sqrt pi), so p keeps its digits in the tails, where both erfc are tiny, and
the error of exp(-a^2) is a factor, not a part of the difference.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import Build, differentiate, on_gpu, operator

#: The least probability: 29.9 bits are the most that a latent is charged with.
BOUND = 1e-9

# (x + 2) erfcx(x) for x >= 0 as a polynomial in (x - 2) / (x + 2), highest power first: interpolated in the Chebyshev
# nodes (Shepherd and Laframboise 1981 map the half line so) and rounded. The test computes them anew. Relative error of
# erfcx so evaluated: 2.5e-7 in float32, 6e-16 in float64.
SINGLE = (
    8.857683e-05, 7.3528725e-05, -0.00060943817, -0.00086208, 0.0030676941, 0.006487466, -0.021506622, -0.036443498,
    0.2794719, -0.6871606, 1.0215827,
)  # fmt: skip
DOUBLE = (
    -4.4249307570099696e-09, -1.3237095475233435e-08, 1.6662796605977078e-08, 1.0315803085323175e-07,
    6.247579905692851e-08, -3.000474633974813e-07, -6.380976152588791e-07, -3.055120306157248e-08,
    2.047343518995146e-06, 3.6693527432903766e-06, -1.1465494066088844e-06, -1.6133737898717684e-05,
    -2.1689660957160787e-05, 3.4153092552195884e-05, 0.00014446940306012078, 3.437055409921287e-05,
    -0.0006630733344214594, -0.00083729594910694, 0.003090612047047431, 0.0064791850596462915,
    -0.021510661889086805, -0.03644223150661309, 0.2794720925560509, -0.6871606844138132, 1.021582705242023,
)  # fmt: skip

_SINGLE, _SINGLE_COUNT = tl.constexpr(SINGLE), tl.constexpr(len(SINGLE))
_DOUBLE, _DOUBLE_COUNT = tl.constexpr(DOUBLE), tl.constexpr(len(DOUBLE))
_BOUND = tl.constexpr(BOUND)
_INVERSE_LN2 = tl.constexpr(1 / math.log(2))
_INVERSE_ROOT_PI = tl.constexpr(1 / math.sqrt(math.pi))

_BLOCK = 1024
_WARPS = 4


# ---- in kernels


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, COUNT: tl.constexpr):
    value = tl.full(x.shape, COEFFICIENTS[0], x.dtype)
    for i in tl.static_range(1, COUNT):
        value = value * x + COEFFICIENTS[i]
    return value


@triton.jit
def erfcx(x):
    """exp(x^2) erfc(x) of a block of x >= 0, float32 or float64. Triton has no erfc that its interpreter runs."""
    u = 1.0 / (x + 2.0)
    t = 1.0 - 4.0 * u
    if x.dtype == tl.float64:
        value = _polynomial(t, _DOUBLE, _DOUBLE_COUNT)
    else:
        value = _polynomial(t, _SINGLE, _SINGLE_COUNT)
    return value * u


@triton.jit
def interval(magnitude, inverse):
    """The interval of a symbol. magnitude: m >= 0; inverse: c. Returns a, exp(-a^2), q and p as above."""
    lower = (magnitude - 0.5) * inverse
    upper = (magnitude + 0.5) * inverse
    exponential = tl.exp(-lower * lower)
    ratio = tl.exp(-2.0 * (magnitude * inverse) * inverse)
    near, far = erfcx(tl.abs(lower)), ratio * erfcx(upper)
    # Around the centre a is negative, and erfc(a) is 2 - erfc(-a).
    mass = tl.where(lower < 0.0, 1.0 - 0.5 * exponential * (near + far), 0.5 * exponential * (near - far))
    return lower, exponential, ratio, mass


@triton.jit
def _forward_kernel(
    residual, index, bits, count, LOG2_LEAST: tl.constexpr, LOG2_STEP: tl.constexpr, BLOCK: tl.constexpr
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    magnitude = tl.abs(tl.load(residual + offsets, mask=inside, other=0.0))
    inverse = tl.exp2(-(tl.load(index + offsets, mask=inside, other=0.0) * LOG2_STEP + LOG2_LEAST))
    _, _, _, mass = interval(magnitude, inverse)
    # A comparison, not a maximum, which would turn NaN into the bound.
    tl.store(bits + offsets, -tl.log2(tl.where(mass < _BOUND, _BOUND, mass)), mask=inside)


@triton.jit
def _backward_kernel(
    gradient,
    residual,
    index,
    residual_gradient,
    index_gradient,
    count,
    LOG2_LEAST: tl.constexpr,
    LOG2_STEP: tl.constexpr,
    LOG_STEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    signed = tl.load(residual + offsets, mask=inside, other=0.0)
    magnitude = tl.abs(signed)
    inverse = tl.exp2(-(tl.load(index + offsets, mask=inside, other=0.0) * LOG2_STEP + LOG2_LEAST))
    _, exponential, ratio, mass = interval(magnitude, inverse)
    # What dp/dm and dp/dindex share: exp(-a^2) c / sqrt pi times dbits/dp = -1 / (p ln 2).
    slope = tl.load(gradient + offsets, mask=inside, other=0.0) * exponential * inverse
    slope = -slope * (_INVERSE_LN2 * _INVERSE_ROOT_PI) / tl.where(mass < _BOUND, _BOUND, mass)
    fall = 1.0 - ratio
    tl.store(residual_gradient + offsets, tl.where(signed < 0.0, slope, -slope) * fall, mask=inside)
    growth = 0.5 * (1.0 + ratio) - magnitude * fall
    tl.store(index_gradient + offsets, slope * growth * (-LOG_STEP), mask=inside)


# ---- references


def gaussian_bits_reference(residual: Tensor, index: Tensor, least_scale: float, log_step: float) -> Tensor:
    """The definition of `gaussian_bits`, differentiable by autograd."""
    inverse = torch.exp(-(math.log(least_scale) + index * log_step)) * math.sqrt(0.5)
    magnitude = residual.abs()
    upper, lower = torch.erfc((magnitude - 0.5) * inverse), torch.erfc((magnitude + 0.5) * inverse)
    probability = 0.5 * (upper - lower)
    return -torch.log2(probability + (probability.clamp(min=BOUND) - probability).detach())


def gaussian_bits_backward_reference(
    gradient: Tensor, residual: Tensor, index: Tensor, least_scale: float, log_step: float
) -> tuple[Tensor, Tensor]:
    """The gradients by `residual` and `index` that autograd gives for the reference, written out."""
    inverse = torch.exp(-(math.log(least_scale) + index * log_step)) * math.sqrt(0.5)
    magnitude = residual.abs()
    lower, upper = (magnitude - 0.5) * inverse, (magnitude + 0.5) * inverse
    probability = 0.5 * (torch.erfc(lower) - torch.erfc(upper))
    slope = gradient / (probability.clamp(min=BOUND) * (math.log(2) * math.sqrt(math.pi)))
    at_lower, at_upper = torch.exp(-lower.square()), torch.exp(-upper.square())
    return (
        slope * inverse * (at_lower - at_upper) * residual.sign(),
        slope * log_step * (upper * at_upper - lower * at_lower),
    )


# ---- operators


def gaussian_bits(residual: Tensor, index: Tensor, least_scale: float, log_step: float) -> Tensor:
    """Bits that a latent costs. Differentiable once, by residual and index.

    residual: latent minus mean, in quantisation steps, float32 or float64, any shape; index: the scale index, which may
    be fractional, of the same shape, type and device; least_scale: sigma at index 0; log_step: ln sigma from one index
    to the next. Returns bits of the same shape and type, contiguous. In float32, in the interpreter, they are right to
    6e-5 for the codec's 64 scales: worst around 0 at the greatest, where p = 0.006 is a difference of numbers near 1.

    Raises ValueError for tensors that differ in shape, type or device, or are neither float32 nor float64.
    """
    for what in ("shape", "dtype", "device"):
        if getattr(residual, what) != getattr(index, what):
            raise ValueError(f"residual and index differ in {what}: {getattr(residual, what)}, {getattr(index, what)}")
    if residual.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"residual and index must be float32 or float64, not {residual.dtype}")
    return torch.ops.fastcodec.gaussian_bits(residual, index, least_scale, log_step)


def _scale_constants(least_scale: float, log_step: float) -> dict[str, float]:
    """c = 2^-(index * LOG2_STEP + LOG2_LEAST): the square root of 2 is in it."""
    return {"LOG2_LEAST": math.log2(least_scale) + 0.5, "LOG2_STEP": log_step / math.log(2)}


def _gaussian_bits(residual: Tensor, index: Tensor, least_scale: float, log_step: float) -> Tensor:
    residual, index = residual.contiguous(), index.contiguous()
    if not on_gpu(residual):
        return gaussian_bits_reference(residual, index, least_scale, log_step)
    bits = torch.empty_like(residual)
    if count := residual.numel():
        constants = _scale_constants(least_scale, log_step)
        _forward_kernel[(triton.cdiv(count, _BLOCK),)](
            residual, index, bits, count, **constants, BLOCK=_BLOCK, num_warps=_WARPS
        )
    return bits


def _gaussian_bits_backward(
    gradient: Tensor, residual: Tensor, index: Tensor, least_scale: float, log_step: float
) -> tuple[Tensor, Tensor]:
    gradient, residual, index = gradient.contiguous(), residual.contiguous(), index.contiguous()
    if not on_gpu(residual):
        return gaussian_bits_backward_reference(gradient, residual, index, least_scale, log_step)
    residual_gradient, index_gradient = torch.empty_like(residual), torch.empty_like(index)
    if count := residual.numel():
        _backward_kernel[(triton.cdiv(count, _BLOCK),)](
            gradient,
            residual,
            index,
            residual_gradient,
            index_gradient,
            count,
            **_scale_constants(least_scale, log_step),
            LOG_STEP=log_step,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return residual_gradient, index_gradient


def _save_inputs(ctx, inputs: tuple[Tensor, Tensor, float, float], output: Tensor) -> None:
    residual, index, ctx.least_scale, ctx.log_step = inputs
    ctx.save_for_backward(residual, index)


def _differentiate(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    backward = torch.ops.fastcodec.gaussian_bits_backward
    return *backward(gradient, *ctx.saved_tensors, ctx.least_scale, ctx.log_step), None, None


def _gaussian_bits_fake(residual, index, least_scale, log_step):
    return residual.new_empty(residual.shape)


def _gaussian_bits_backward_fake(gradient, residual, index, least_scale, log_step):
    return residual.new_empty(residual.shape), index.new_empty(index.shape)


operator(
    "gaussian_bits(Tensor residual, Tensor index, float least_scale, float log_step) -> Tensor",
    _gaussian_bits,
    _gaussian_bits_fake,
)
operator(
    "gaussian_bits_backward(Tensor gradient, Tensor residual, Tensor index, float least_scale, float log_step)"
    " -> (Tensor, Tensor)",
    _gaussian_bits_backward,
    _gaussian_bits_backward_fake,
)
differentiate("gaussian_bits", _differentiate, _save_inputs)


def builds() -> list[Build]:
    """Both kernels as training launches them: float32, the codec's 64 scales from 0.11 to 64."""
    log_step = math.log(64 / 0.11) / 63
    constants = _scale_constants(0.11, log_step) | {"BLOCK": _BLOCK}
    inputs = {"residual": "*fp32", "index": "*fp32"}
    gradients = {"residual_gradient": "*fp32", "index_gradient": "*fp32", "count": "i32"}
    return [
        Build("gaussian_bits", _forward_kernel, inputs | {"bits": "*fp32", "count": "i32"}, constants, _WARPS),
        Build(
            "gaussian_bits_backward",
            _backward_kernel,
            {"gradient": "*fp32"} | inputs | gradients,
            constants | {"LOG_STEP": log_step},
            _WARPS,
        ),
    ]
