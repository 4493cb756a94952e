"""The benchmark of screens on one small picture. Nothing here looks at times."""

import sys

import numpy as np
import pytest

from bench import screens
from fastcodec import graphics


@pytest.fixture
def picture() -> np.ndarray:
    random = np.random.default_rng(1)
    return graphics.draw(random, 96, 128, kind="editor", fonts=graphics.PILLOW_FONTS)


def test_every_coder_on_a_small_screen(picture, capsys):
    found = screens.run({"screenshots": {"editor": picture}}, rounds=1)
    assert found["sizes"] == {"editor": [128, 96]}
    assert found["holds"]
    assert all(found["holds"].values())
    items = found["pictures"]["screenshots"]["editor"]
    assert items.keys() == {coder.name for coder in screens._coders()}
    for name, item in items.items():
        exact = "lossless" in name or name == "PNG"
        assert (item["psnr"] is None) >= exact, name
        assert item["bytes"] > 0
        assert min(item["encode_seconds"], item["decode_seconds"]) > 0
    assert items["fastcodec lossless"]["lossless_tiles"] == items["fastcodec lossless"]["tiles"] == 1
    assert items["WebP 50"]["worst_block"] <= items["WebP 50"]["psnr"]
    out = capsys.readouterr().out
    assert "1 of 1" in out
    assert "holds: lossless files are exact" in out


def test_a_claim_that_fails_is_said(picture, monkeypatch, capsys):
    monkeypatch.setattr(screens, "LEAST_PSNR", 61.0)
    holds = screens.run({"screenshots": {"editor": picture}}, rounds=1)["holds"]
    assert holds["and comes back at 61 dB"] is False
    assert "FAILS: and comes back at 61 dB" in capsys.readouterr().out


def test_the_mixed_pictures(monkeypatch):
    """Of the same photographs wherever scikit-image is, and of clouds where it is not."""
    pictures = screens.mixed()
    assert {picture.shape for picture in pictures.values()} == {(1440, 2560, 3)}
    assert all(len(np.unique(picture.reshape(-1, 3), axis=0)) > 10000 for picture in pictures.values())
    monkeypatch.setitem(sys.modules, "skimage", None)
    clouds = screens._photographs()
    assert len(clouds) == len(screens._PHOTOGRAPHS)
    assert all(cloud.shape == (512, 512, 3) and 20 < cloud.std() < 90 for cloud in clouds)
