"""Metrics against their definitions, against the packages the field uses, and against stored values."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcodec.metrics import MIN_MS_SSIM_SIDE, bd_rate, ms_ssim, ms_ssim_db, psnr


def noisy_pair(height: int, width: int, channels: int = 3, noise: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Smooth waves and the same with noise, from integers alone: equal on every machine."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    first = (x * (3 + c) + y * y // 16 + 40 * ((x // 24 + y // 16) % 2)) % 256
    random = np.random.RandomState(5).randint(-noise, noise + 1, first.shape)  # its stream is frozen
    return first.astype(np.uint8), np.clip(first + random, 0, 255).astype(np.uint8)


def test_psnr_is_the_definition():
    first, second = noisy_pair(70, 90)
    error = np.mean((first.astype(float) - second) ** 2)
    assert psnr(first, second) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-12)
    assert psnr(first[..., 0], second[..., 0]) != psnr(first, second)


def test_psnr_of_an_equal_image_is_infinite():
    first, _ = noisy_pair(20, 20)
    assert psnr(first, first) == math.inf


def test_psnr_of_opposites_is_zero():
    assert psnr(np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)) == 0


@pytest.mark.parametrize("metric", [psnr, ms_ssim])
def test_images_that_do_not_match_are_refused(metric):
    first, _ = noisy_pair(200, 200)
    with pytest.raises(ValueError, match="one shape"):
        metric(first, first[:-1])
    with pytest.raises(ValueError, match="uint8"):
        metric(first, first.astype(np.float32))


# What pytorch-msssim 1.0.0 gives (data_range=255, size_average=True) for noisy_pair(height, width, noise=noise).
STORED = [
    (161, 161, 5, 0.998995304107666),
    (161, 161, 60, 0.9364486336708069),
    (200, 333, 20, 0.9903137683868408),
    (256, 384, 40, 0.9741935729980469),
]


@pytest.mark.parametrize("height, width, noise, expected", STORED)
def test_ms_ssim_gives_stored_values(height, width, noise, expected):
    assert ms_ssim(*noisy_pair(height, width, noise=noise)) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("height, width, noise, expected", STORED)
def test_ms_ssim_equals_the_package(height, width, noise, expected):
    package = pytest.importorskip("pytorch_msssim")
    first, second = noisy_pair(height, width, noise=noise)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in (first, second)]
    value = package.ms_ssim(*tensors, data_range=255).item()
    assert value == pytest.approx(expected, abs=2e-6)
    assert ms_ssim(first, second) == pytest.approx(value, abs=2e-6)


def test_ms_ssim_of_gray_is_that_of_three_equal_channels():
    first, second = (image[..., 0] for image in noisy_pair(180, 170))
    colour = [np.repeat(image[..., None], 3, axis=2) for image in (first, second)]
    assert ms_ssim(first, second) == pytest.approx(ms_ssim(*colour), abs=1e-6)


def test_ms_ssim_of_an_equal_image_is_one():
    first, _ = noisy_pair(161, 200)
    assert ms_ssim(first, first) == pytest.approx(1, abs=1e-6)


def test_ms_ssim_of_a_small_image_is_unknown():
    assert MIN_MS_SSIM_SIDE == 161
    assert ms_ssim(*noisy_pair(160, 500)) is None
    assert ms_ssim(*noisy_pair(161, 161)) is not None


def test_ms_ssim_in_decibels():
    assert ms_ssim_db(0.99) == pytest.approx(20)
    assert ms_ssim_db(1.0) == math.inf


RATES = np.array([0.1, 0.2, 0.45, 0.8, 1.3, 1.9])
QUALITIES = np.array([27.0, 29.2, 32.1, 34.4, 36.9, 38.8])


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.37])
def test_bd_rate_of_a_scaled_curve_is_the_factor(factor):
    result = bd_rate(RATES, QUALITIES, factor * RATES, QUALITIES)
    assert result.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert (result.low, result.high, result.coverage) == (27.0, 38.8, 1.0)


def test_bd_rate_takes_the_common_range():
    result = bd_rate(RATES, QUALITIES, 1.1 * RATES[2:], QUALITIES[2:] + 0.0)
    assert (result.low, result.high, result.coverage) == (32.1, 38.8, 1.0)
    wide = bd_rate(RATES[2:4], QUALITIES[2:4], RATES, QUALITIES)
    assert wide.coverage == pytest.approx((34.4 - 32.1) / (38.8 - 27.0))


def test_bd_rate_equals_scipys_pchip():
    interpolate = pytest.importorskip("scipy.interpolate")
    random = np.random.default_rng(3)
    for count in (2, 3, 4, 9):
        curves = []
        for _ in range(2):
            quality = np.sort(random.uniform(25, 40, count)) + np.arange(count) * 0.1
            curves.append((np.sort(random.uniform(0.05, 2, count)), quality))
        result = bd_rate(*curves[0], *curves[1])
        low = max(quality[0] for _, quality in curves)
        high = min(quality[-1] for _, quality in curves)
        if high <= low:
            assert result is None
            continue
        areas = [interpolate.PchipInterpolator(q, np.log(r)).integrate(low, high) for r, q in curves]
        expected = 100 * (math.exp((areas[1] - areas[0]) / (high - low)) - 1)
        assert result.percent == pytest.approx(expected, rel=1e-9)


def test_bd_rate_sorts_and_leaves_out_dominated_points():
    order = [4, 0, 2, 5, 1, 3]
    clean = bd_rate(RATES, QUALITIES, 1.2 * RATES, QUALITIES)
    rates = [*RATES[order], 0.5, 1.3, 0.7, math.nan]  # worse than others, a duplicate, and no number
    qualities = [*QUALITIES[order], 32.1, 36.9, 30.0, 33.0]
    assert bd_rate(rates, qualities, 1.2 * RATES, QUALITIES) == clean


def test_bd_rate_is_unknown_without_overlap_or_points():
    assert bd_rate(RATES, QUALITIES, RATES, QUALITIES + 20) is None
    assert bd_rate(RATES[:1], QUALITIES[:1], RATES, QUALITIES) is None
    with pytest.raises(ValueError, match="rates"):
        bd_rate(RATES[:2], QUALITIES, RATES, QUALITIES)


def test_bd_rates_among_published_curves():
    """The differences that the field quotes, from the curves themselves."""
    path = Path(os.environ.get("FASTCODEC_REFERENCE") or "../shared/reference/rd-kodak.json")
    if not path.is_file():
        path = Path(__file__).resolve().parents[2] / "shared" / "reference" / "rd-kodak.json"
    if not path.is_file():
        pytest.skip("no reference curves: set FASTCODEC_REFERENCE")
    curves = json.loads(path.read_text())["curves"]
    vtm = curves["VVC (VTM)"]
    for name, expected in (
        ("mbt2018-mean (CompressAI)", 21.3),
        ("Minnen2018 checkerboard (paper)", 19.0),
        ("AV1", 16.2),
        ("mbt2018 (CompressAI)", 11.0),
        ("Cheng2020 checkerboard 6M (paper)", 3.9),
    ):
        result = bd_rate(vtm["bpp"], vtm["psnr_rgb"], curves[name]["bpp"], curves[name]["psnr_rgb"])
        assert result.percent == pytest.approx(expected, abs=0.06), name
