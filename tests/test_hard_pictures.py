"""Hard pictures: none comes back worse than its quality promises, and none is larger than lossless coding makes it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hard_pictures import screenshots, suite
from PIL import Image

from fastcodec import container, lossless
from fastcodec.codec import Codec
from fastcodec.constants import MIN_QUALITY
from fastcodec.engines.gpu_transforms import Transforms
from fastcodec.kernels.triton import pixels as pixels_module
from fastcodec.kernels.triton import pointwise, residual, upsample

QUALITIES = (1, *range(10, 101, 10))
LEAST_PSNR = {10: (18, 12), 60: (24, 18), 90: (32, 26)}  # from a quality on: of the picture, of its worst 16 x 16 block
CAP = 55.0  # PSNR beyond this counts as this: two files without an error that anyone sees


def psnr(error: float) -> float:
    return min(CAP, -10 * np.log10(max(error, 1e-9) / 255**2))


def faults(codec: Codec, pixels: np.ndarray, qualities: tuple[int, ...] = QUALITIES) -> list[str]:
    """What is wrong with the files of a picture at several qualities, in words."""
    exact = codec.encode(pixels, lossless=True)
    found = [] if np.array_equal(codec.decode(exact, out="numpy"), pixels) else ["lossless is not exact"]
    best = 0.0
    for quality in qualities:
        data = codec.encode(pixels, quality=quality)
        distortion = lossless.Distortion.between(pixels, codec.decode(data, out="numpy"))
        mean, worst = psnr(distortion.mean), psnr(distortion.worst)
        said = f"quality {quality}: {len(data)} bytes, {mean:.1f} dB, worst block {worst:.1f} dB"
        floor = LEAST_PSNR[max(q for q in LEAST_PSNR if q <= quality)] if quality >= 10 else (0, 0)
        if mean < floor[0] or worst < floor[1]:
            found.append(f"{said}: below {floor}")
        if mean < best - 0.3:
            found.append(f"{said}: it was {best:.1f} dB at a lower quality")
        if len(data) > 1.01 * len(exact) + 64:
            found.append(f"{said}: lossless takes {len(exact)} bytes")
        best = max(best, mean)
    return found


@pytest.mark.parametrize("name", suite())
def test_a_hard_picture_keeps_what_its_quality_promises(name, codec):
    assert faults(codec, suite()[name]) == []


@pytest.mark.slow
def test_half_precision_shows_what_float32_shows(codec, monkeypatch):
    """Within one level, of every file with network tiles alone: the GPU's transforms on their kernels' references."""
    for module in (pixels_module, pointwise, residual, upsample):
        monkeypatch.setattr(module, "runs_kernel", lambda _: False)
    transforms, compared = Transforms(codec.model, "cpu"), 0
    for name, picture in suite().items():
        if picture.size > 3 * 200 * 200:
            continue
        for quality in (10, 60, 100):
            data = codec.encode(picture, quality=quality)
            if any(container.read(data).lossless):
                continue
            row = torch.tensor([quality - MIN_QUALITY], dtype=torch.int32)
            latents = codec.latents(data)[None] * (codec.model.inverse_gain[row.long()] / 16)
            half = torch.empty(1, *picture.shape[:2], 3, dtype=torch.uint8)
            transforms.synthesis(latents.half(), row, half)
            exact = codec.decode_tensor([data]).pixels.permute(0, 2, 3, 1)
            assert (half.int() - exact).abs().max() <= 1, f"{name} at quality {quality}"
            compared += 1
    assert compared > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", screenshots())
def test_a_screenshot_is_no_larger_than_lossless_webp_and_looks_like_it(name, codec):
    """At quality 90: at most the bytes of lossless WebP at Pillow's settings, and 40 dB."""
    pixels = screenshots()[name]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    data = codec.encode(pixels, quality=90)
    assert len(data) <= len(buffer.getvalue())
    assert psnr(lossless.Distortion.between(pixels, codec.decode(data, out="numpy")).mean) >= 40
