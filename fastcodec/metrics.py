"""Measures of decoded images and their curves: PSNR, MS-SSIM and the Bjøntegaard rate difference.

PSNR and MS-SSIM follow the conventions of the published learned-codec curves (each image by itself, RGB, then the mean
over images), so that our figures stand beside theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Wang, Simoncelli and Bovik 2003, "Multiscale structural similarity", section 3.2: the finest scale first.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# The window must fit into the coarsest scale.
MIN_MS_SSIM_SIDE = (_WINDOW - 1) * 2 ** (len(_SCALE_WEIGHTS) - 1) + 1
_STRIP_SAMPLES = 1 << 22


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images [H, W] or [H, W, C], over all samples; inf if equal."""
    _check(first, second)
    rows = max(1, _STRIP_SAMPLES // max(1, first[0].size))
    squares = 0
    for top in range(0, first.shape[0], rows):
        difference = first[top : top + rows].astype(np.int32) - second[top : top + rows]
        squares += int(np.square(difference).sum(dtype=np.int64))
    return 10 * math.log10(255**2 * first.size / squares) if squares else math.inf


def ms_ssim(first: np.ndarray, second: np.ndarray) -> float | None:
    """Multi-scale structural similarity of two uint8 images [H, W] or [H, W, C]: the mean over channels.

    Five scales, an 11x11 Gaussian window of sigma 1.5 without padding, data range 255 (Wang 2003), channels apart: the
    figures of CompressAI and most papers. None for an image with a side under 161 pixels, where the coarsest scale has
    no room for the window.
    """
    _check(first, second)
    if min(first.shape[:2]) < MIN_MS_SSIM_SIDE:
        return None
    a, b = (image.reshape(*image.shape[:2], -1) for image in (first, second))
    channels = a.shape[2]
    # One channel at a time: a third of the memory, which decides on a large image.
    return sum(_ms_ssim_plane(a[..., c], b[..., c]) for c in range(channels)) / channels


def ms_ssim_db(value: float) -> float:
    """MS-SSIM as -10 log10(1 - value), the scale on which its curves are drawn and compared; inf for 1."""
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.dtype != np.uint8 or second.dtype != np.uint8:
        raise ValueError(
            f"uint8 images of one shape expected, not {first.dtype} {first.shape} and {second.dtype} {second.shape}"
        )
    if first.ndim not in (2, 3) or 0 in first.shape:
        raise ValueError(f"an image [H, W] or [H, W, C] expected, not one of shape {first.shape}")


@torch.inference_mode()
def _ms_ssim_plane(first: np.ndarray, second: np.ndarray) -> float:
    offsets = torch.arange(_WINDOW, dtype=torch.float32, device="cpu") - _WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    window /= window.sum()
    x, y = (torch.from_numpy(np.ascontiguousarray(p)).float() for p in (first, second))
    score = 1.0
    for scale, weight in enumerate(_SCALE_WEIGHTS):
        if scale:
            # Odd sides are padded by zeros that count in the average, as the reference implementations do.
            padding = [side % 2 for side in x.shape]
            x, y = (F.avg_pool2d(p[None], kernel_size=2, padding=padding)[0] for p in (x, y))
        similarity, contrast = _ssim(x, y, window)
        last = scale == len(_SCALE_WEIGHTS) - 1
        score *= max(0.0, similarity if last else contrast) ** weight
    return score


def _ssim(x: Tensor, y: Tensor, window: Tensor) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure term of two planes [H, W]."""
    # Depthwise over the five moments: measured 5 times as fast as conv2d on one channel, which has no good kernel.
    moments = torch.stack([x, y, x * x, y * y, x * y])
    vertical, horizontal = window.view(1, 1, -1, 1).expand(5, 1, -1, 1), window.view(1, 1, 1, -1).expand(5, 1, 1, -1)
    moments = F.conv2d(F.conv2d(moments, vertical, groups=5), horizontal, groups=5)
    mean_x, mean_y, square_x, square_y, product = moments
    covariance = product - mean_x * mean_y
    variances = square_x + square_y - mean_x.square() - mean_y.square()
    contrast = (2 * covariance + _C2) / (variances + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return float((luminance * contrast).mean()), float(contrast.mean())


@dataclass(frozen=True)
class BDRate:
    """The average difference in rate at equal quality, and the part of the curves that it was taken over."""

    percent: float  # below 0: the test curve needs fewer bits
    low: float  # the compared range of quality, in dB
    high: float
    coverage: float  # the part of the test curve's range of quality that was compared, 0..1


def bd_rate(
    reference_rates: Sequence[float],
    reference_qualities: Sequence[float],
    test_rates: Sequence[float],
    test_qualities: Sequence[float],
) -> BDRate | None:
    """Bjøntegaard's rate difference of a test curve against a reference (VCEG-M33, with JVET's piecewise cubic).

    log(rate) over quality (dB) is interpolated by monotone piecewise cubics (PCHIP, Fritsch and Carlson 1980) and
    integrated exactly over the range of quality that both curves cover. Points may come in any order; one that
    another point of its curve beats or equals in both rate and quality is left out, for no user would take it. None
    where fewer than two points remain on a curve or the ranges do not overlap.
    """
    curves = [
        _frontier(rates, qualities)
        for rates, qualities in ((reference_rates, reference_qualities), (test_rates, test_qualities))
    ]
    if any(len(quality) < 2 for quality, _ in curves):
        return None
    low = max(quality[0] for quality, _ in curves)
    high = min(quality[-1] for quality, _ in curves)
    if high <= low:
        return None
    reference, test = (_pchip_integral(quality, rate, low, high) for quality, rate in curves)
    test_range = curves[1][0]
    return BDRate(
        percent=100 * math.expm1((test - reference) / (high - low)),
        low=float(low),
        high=float(high),
        coverage=float((high - low) / (test_range[-1] - test_range[0])),
    )


def _frontier(rates: Sequence[float], qualities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The points that no other dominates: (quality, log rate), both strictly rising."""
    if len(rates) != len(qualities):
        raise ValueError(f"a curve has {len(rates)} rates and {len(qualities)} qualities")
    points = [(q, r) for q, r in zip(qualities, rates, strict=True) if math.isfinite(q) and math.isfinite(r) and r > 0]
    kept: list[tuple[float, float]] = []
    for quality, rate in sorted(points, key=lambda p: (-p[0], p[1])):
        if not kept or rate < kept[-1][1]:
            kept.append((quality, rate))
    kept.reverse()
    array = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], np.log(array[:, 1])


def _pchip_integral(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """The integral from low to high of the monotone piecewise cubic through (x, y)."""
    slopes = _pchip_slopes(x, y)
    h, delta = np.diff(x), np.diff(y) / np.diff(x)
    c2 = (3 * delta - 2 * slopes[:-1] - slopes[1:]) / h
    c3 = (slopes[:-1] + slopes[1:] - 2 * delta) / h**2
    begin = np.clip(low, x[:-1], x[1:]) - x[:-1]
    end = np.clip(high, x[:-1], x[1:]) - x[:-1]

    def antiderivative(s: np.ndarray) -> np.ndarray:
        return s * (y[:-1] + s * (slopes[:-1] / 2 + s * (c2 / 3 + s * c3 / 4)))

    return float((antiderivative(end) - antiderivative(begin)).sum())


def _pchip_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fritsch and Carlson's slopes: weighted harmonic means inside, a one-sided three-point rule at the ends."""
    h, delta = np.diff(x), np.diff(y) / np.diff(x)
    if len(x) == 2:
        return np.repeat(delta, 2)
    slopes = np.zeros_like(x)
    inside = delta[:-1] * delta[1:] > 0
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    harmonic = (w1 + w2)[inside] / (w1[inside] / delta[:-1][inside] + w2[inside] / delta[1:][inside])
    slopes[1:-1][inside] = harmonic
    slopes[0] = _end_slope(h[0], h[1], delta[0], delta[1])
    slopes[-1] = _end_slope(h[-1], h[-2], delta[-1], delta[-2])
    return slopes


def _end_slope(h0: float, h1: float, delta0: float, delta1: float) -> float:
    slope = ((2 * h0 + h1) * delta0 - h0 * delta1) / (h0 + h1)
    if slope * delta0 <= 0:
        return 0.0
    if delta0 * delta1 <= 0 and abs(slope) > 3 * abs(delta0):
        return 3 * delta0
    return slope
