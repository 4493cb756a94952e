"""The study of what coding costs: its sums, what it says of systems without an integer twin, its program."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_zoo import lively

from bench.studies import zoo_rates
from fastcodec.codec import Codec
from fastcodec.images import to_picture


@pytest.fixture(scope="module")
def pixels(photographs) -> np.ndarray:
    return np.ascontiguousarray(photographs["chelsea"][40:168, 90:218])


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-checkerboard"])
def test_figures(name, pixels):
    model = lively(name, pixels)
    pictures = [to_picture(pixels), to_picture(pixels[:70, :90].copy())]
    record = zoo_rates.study(model, pictures, pictures[:1])
    codec = Codec(model)
    files = [codec.encode(picture) for picture in pictures]
    floats, whole = record["floats"], record["integers"]
    assert floats["file_bits"] == sum(8 * len(file) for file in files)
    assert floats["estimated_bits"] == pytest.approx(sum(file.estimated_bits for file in files))
    assert floats["pixels"] == 128 * 128 + 70 * 90
    # Payloads have the hyper latents too, and files the container's some 90 bytes.
    assert floats["latent_bits"] <= floats["payload_bits"] < floats["file_bits"] < floats["payload_bits"] + 2 * 8 * 120
    assert 0 < floats["latent_overhead"] < 0.05
    assert floats["share_of_the_allowed_bytes_at_worst"] < 1
    assert record["calibration_images"] == 1
    assert whole["payload_bits"] / floats["payload_bits"] - 1 == record["cost_in_bytes"]
    assert abs(record["cost_in_code_length"]) < 0.003


def test_a_system_without_an_integer_twin(pixels):
    model = lively("mbt2018-mean", pixels, rounding="latents")
    record = zoo_rates.study(model, [to_picture(pixels)], [to_picture(pixels)])
    assert record["integers"] is None
    assert "RoundedGaussianConditional" in record["why_no_integers"]


def test_program(pixels, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels[:64, :64]).save(tmp_path / "images" / "a.png")
    out = tmp_path / "out" / "rates.json"
    for name in ("bmshj2018-factorized", "bmshj2018-hyperprior"):
        torch.save(lively(name, pixels).state_dict(), tmp_path / "weights.pth")
        folders = ["--images", str(tmp_path / "images"), "--calibration", str(tmp_path / "images")]
        assert zoo_rates.main([name, str(tmp_path / "weights.pth"), *folders, "--out", str(out)]) == 0
        assert f"{name}: 1 images" in capsys.readouterr().out
    assert list(json.loads(out.read_text())["systems"]) == ["bmshj2018-factorized", "bmshj2018-hyperprior"]
