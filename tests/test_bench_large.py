"""The benchmark of large photographs, on small ones."""

import numpy as np
import pytest
from PIL import Image, features

from bench import large
from bench.common import CannotRunError


def test_curves_and_rates_against_every_rival(photographs, capsys):
    pictures = {"as they are": {name: p[:192, :256] for name, p in list(photographs.items())[:2]}}
    found = large.run(pictures)
    rows = found["sizes"]["as they are"]
    assert rows.keys() == pictures["as they are"].keys()
    rivals = [name for name in large.RIVAL_QUALITIES if name != "AVIF" or features.check("avif")]
    for row in rows.values():
        assert (row["width"], row["height"]) == (256, 192)
        for name in (large.OURS, *rivals):
            curve = row["curves"][name]
            assert curve["bytes"] == sorted(curve["bytes"]), name
            assert curve["psnr"] == sorted(curve["psnr"]), name
        assert list(row["bd_rate"]) == rivals
        assert row["bd_rate"]["JPEG"] < -20  # ours is far smaller than JPEG
    mean = np.mean([row["bd_rate"]["JPEG"] for row in rows.values()])
    assert found["mean_bd_rate_percent"]["as they are"]["JPEG"] == pytest.approx(mean)
    assert "mean" in capsys.readouterr().out


def test_a_claim_that_fails_is_said(photographs, monkeypatch, capsys):
    if not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    monkeypatch.setattr(large, "LEAST_PERCENT", -99.0)
    found = large.run({"as they are": {"one": next(iter(photographs.values()))[:64, :64]}})
    assert list(found["holds"].values()) == [False]
    assert "FAILS: 99 % smaller than AVIF" in capsys.readouterr().out


def test_photographs_are_read_cut_and_reduced(tmp_path, monkeypatch, capsys):
    """Of two tiles along each side and more; grey ones in three channels; what is no image is left out and named."""
    random = np.random.default_rng(1)
    Image.fromarray(random.integers(0, 256, (2200, 3200), np.uint8)).save(tmp_path / "b.png", compress_level=0)
    Image.fromarray(random.integers(0, 256, (900, 1400, 3), np.uint8)).save(tmp_path / "small.png", compress_level=0)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.setenv("FASTCODEC_LARGE", str(tmp_path))
    sizes = {size: [(name, p.shape) for name, p in members] for size, members in large._sizes()}
    assert sizes == {"as they are": [("b", (2048, 3072, 3))], "2048 pixels": [("b", (1408, 2048, 3))]}
    assert "left out" in capsys.readouterr().out


def test_a_folder_without_large_photographs_is_said(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "small.png")
    monkeypatch.setenv("FASTCODEC_LARGE", str(tmp_path))
    with pytest.raises(CannotRunError, match="no photograph of four tiles"):
        large.run()
