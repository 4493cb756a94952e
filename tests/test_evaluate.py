"""`fastcodec eval`: what it measures, what it writes, and how it treats what it cannot read."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcodec import Codec, Encoded, evaluate, rate_distortion
from fastcodec.errors import ImageError
from fastcodec.evaluate import Mean, Measurement
from fastcodec.images import Picture, read_picture
from fastcodec.metrics import psnr

QUALITIES = (10, 60)


@pytest.fixture
def folder(tmp_path, photographs) -> Path:
    """A colour image, a gray one, one with alpha, and files that are no images."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(photographs["astronaut"][60:236, 160:352]).save(folder / "a colour.png")
    Image.fromarray(photographs["chelsea"][:33, :51, 0]).save(folder / "gray.png")
    coffee = Image.fromarray(photographs["coffee"][100:180, 100:190]).convert("RGBA")
    coffee.putalpha(Image.linear_gradient("L").resize(coffee.size))
    coffee.save(folder / "with-alpha.png")
    (folder / "notes.txt").write_text("not an image, and not named as one")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.main(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def result(folder, tmp_path, capsys) -> dict:
    path = tmp_path / "new folder" / "result.json"
    assert run(folder, "--quality", "60,10", "--json", path, "--per-image") == 0
    out = capsys.readouterr().out
    assert "a colour.png" in out
    assert "3 images" in out
    return json.loads(path.read_text())


def test_figures_are_those_of_real_files(folder, result):
    codec = Codec.load("swift")
    assert [(m["file"], m["quality"]) for m in result["images"]] == [
        (name, quality) for name in ("a colour.png", "gray.png", "with-alpha.png") for quality in QUALITIES
    ]
    for item in result["images"]:
        picture = read_picture(folder / item["file"])
        encoded = codec.encode(picture, quality=item["quality"])
        decoded = codec.decode(encoded, out="picture")
        assert item["bytes"] == len(encoded)
        assert item["bpp"] == pytest.approx(8 * len(encoded) / (item["width"] * item["height"]))
        assert item["estimated_bits"] == pytest.approx(encoded.estimated_bits, rel=1e-6)
        assert item["psnr_rgb"] == pytest.approx(psnr(picture.pixels, decoded.pixels), abs=0.01)
        assert (item["ms_ssim_rgb"] is None) == (item["file"] != "a colour.png")
        assert item["encode_seconds"] > 0 < item["decode_seconds"]
    assert result["failures"] == {}


def test_means_and_curve(result):
    assert [point["quality"] for point in result["means"]] == list(QUALITIES)
    for point in result["means"]:
        items = [m for m in result["images"] if m["quality"] == point["quality"]]
        assert point["images"] == 3
        assert point["bpp"] == pytest.approx(sum(m["bpp"] for m in items) / 3)
        assert point["psnr_rgb"] == pytest.approx(sum(m["psnr_rgb"] for m in items) / 3)
        bits = sum(m["estimated_bits"] for m in items)
        assert point["overhead"] == pytest.approx(8 * sum(m["bytes"] for m in items) / bits - 1)
    curve = result["curves"]["fastcodec swift"]
    assert curve["bpp"] == [point["bpp"] for point in result["means"]]


def test_a_result_serves_as_reference(folder, result, tmp_path, capsys):
    first, second = tmp_path / "new folder" / "result.json", tmp_path / "second.json"
    assert run(folder, "--quality", "10,60", "--json", second, "--reference", first) == 0
    [comparison] = [c for c in json.loads(second.read_text())["bd_rates"] if c["metric"] == "psnr_rgb"]
    assert comparison["reference"] == "fastcodec swift"
    assert comparison["percent"] == pytest.approx(0, abs=0.5)
    assert comparison["coverage"] == pytest.approx(1, abs=0.05)
    assert "BD-rate" in capsys.readouterr().out


def test_jobs_change_figures_by_rounding_at_most(folder, result, tmp_path):
    path = tmp_path / "jobs.json"
    assert run(folder, "--quality", "10,60", "--json", path, "--jobs", "3") == 0
    # The analysis is floating point: with other thread counts a latent on the edge may round the other way.
    for ours, theirs in zip(json.loads(path.read_text())["images"], result["images"], strict=True):
        assert (ours["file"], ours["quality"]) == (theirs["file"], theirs["quality"])
        assert ours["bytes"] == pytest.approx(theirs["bytes"], rel=0.01, abs=4)
        assert ours["psnr_rgb"] == pytest.approx(theirs["psnr_rgb"], abs=0.05)


def test_failing_images_are_named_and_the_others_measured(folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes((folder / "a colour.png").read_bytes()[:900])
    (folder / "empty.jpg").write_bytes(b"")
    path = tmp_path / "result.json"
    assert run(folder, "-q", "30", "--json", path) == 1
    result = json.loads(path.read_text())
    assert set(result["failures"]) == {"broken.png", "empty.jpg"}
    assert {m["file"] for m in result["images"]} == {"a colour.png", "gray.png", "with-alpha.png"}
    errors = capsys.readouterr().err
    assert "broken.png" in errors
    assert "2 of 5 images failed" in errors


def test_one_image_may_be_named(folder, capsys):
    assert run(folder / "gray.png", "-q", "50") == 0
    assert "One image" in capsys.readouterr().out


def test_nothing_to_measure_is_an_error(tmp_path, capsys):
    assert run(tmp_path) == 1
    assert "no image in this folder" in capsys.readouterr().err
    assert run(tmp_path / "absent.png", "-q", "50") == 1
    assert "absent.png" in capsys.readouterr().err


@pytest.mark.parametrize("quality", ["0", "101", "10,x", ""])
def test_bad_qualities_are_refused(tmp_path, quality, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "--quality", quality)
    assert "--quality" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"curves": {"x": {"bpp": [1], "psnr_rgb": [1, 2]}}}', '{"curves": 3}'])
def test_a_bad_reference_ends_it_before_the_work(folder, tmp_path, content, capsys):
    path = tmp_path / "reference.json"
    path.write_text(content)
    assert run(folder, "--reference", path) == 2
    assert "reference.json" in capsys.readouterr().err
    assert run(folder, "--reference", tmp_path / "absent.json") == 2


def test_images_must_come_back_in_their_size(folder):
    class Cropping:
        def encode(self, picture, quality, preset):
            self.picture = picture
            return Encoded(b"123", 20.0, quality)

        def decode(self, data, out, precision):
            return Picture(self.picture.pixels[:-1].copy())

    path = folder / "gray.png"
    with pytest.raises(ImageError, match="came out"):
        evaluate.measure(Cropping(), path, read_picture(path), 50, evaluate.Coding())


def test_a_lossless_result_is_no_number_in_json():
    picture = Picture(np.full((40, 40), 128, np.uint8))

    class Perfect:
        def encode(self, picture, quality, preset):
            self.picture = picture
            return Encoded(b"123", 20.0, quality)

        def decode(self, data, out, precision):
            return self.picture

    measured = evaluate.measure(Perfect(), Path("flat.png"), picture, 50, evaluate.Coding())
    assert measured.psnr_rgb == math.inf
    assert evaluate._finite({"psnr_rgb": [measured.psnr_rgb]}) == {"psnr_rgb": [None]}


def curve(*points: tuple[float, float]) -> list[Mean]:
    return [Mean(q, 24, 1000, bpp, db, 1 - 10 ** (-db / 20), 0.1, 0.1, 0.0) for q, (bpp, db) in enumerate(points, 1)]


def test_the_curves_that_matter_come_first():
    points = curve((0.1, 27.0), (0.3, 30.0), (0.9, 35.0))
    reference = {"bpp": [0.2, 0.6, 1.8], "psnr_rgb": [27.0, 30.0, 35.0]}
    far = {"bpp": [0.2, 0.6], "psnr_rgb": [50.0, 55.0]}
    names = ("mine", "JPEG2000", "jpeg2000 (Pillow, measured)", "webp (Pillow, measured)", "JPEG", "VVC (VTM)")
    comparisons = rate_distortion.compare(points, dict.fromkeys(names, reference) | {"BPG": far})
    assert [c.reference for c in comparisons] == [
        "VVC (VTM)",
        "JPEG",
        "webp (Pillow, measured)",
        "mine",
        "JPEG2000",
        "jpeg2000 (Pillow, measured)",
    ]
    assert all(c.percent == pytest.approx(-50) for c in comparisons)
    assert all(c.metric == "psnr_rgb" for c in comparisons)


def test_ms_ssim_is_compared_where_known():
    points = curve((0.1, 27.0), (0.3, 30.0), (0.9, 35.0))
    similarity = [point.ms_ssim_rgb for point in points]
    reference = {"bpp": [0.2, 0.6, 1.8], "psnr_rgb": [27.0, 30.0, 35.0], "ms_ssim_rgb": similarity}
    comparisons = rate_distortion.compare(points, {"other": reference})
    assert {c.metric: round(c.percent, 6) for c in comparisons} == {"psnr_rgb": -50, "ms_ssim_rgb": -50}


def test_only_kodak_is_compared_with_kodak_unasked(folder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "kodak.json"
    curves = {"any": {"bpp": [0.001, 100.0], "psnr_rgb": [1.0, 90.0]}}
    path.write_text(json.dumps({"dataset": "Kodak, 24 images", "curves": curves}))
    monkeypatch.setenv("FASTCODEC_REFERENCE", str(path))
    assert run(folder, "-q", "10,60") == 0
    assert "BD-rate" not in capsys.readouterr().out
    assert run(folder, "-q", "10,60", "--reference", path) == 0
    out = capsys.readouterr().out
    assert "compare unlike things" in out
    assert "any" in out
    assert rate_distortion.is_kodak(f"kodim{i:02d}.png" for i in range(1, 25))
    assert not rate_distortion.is_kodak(f"kodim{i:02d}.png" for i in range(1, 24))


def test_the_plot_is_drawn(folder, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plots" / "curve.png"
    assert run(folder, "-q", "10,60", "--plot", path) == 0
    with Image.open(path) as image:
        assert min(image.size) > 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_the_plot_needs_matplotlib_and_a_known_format(folder, tmp_path, monkeypatch, capsys):
    assert run(folder, "--plot", tmp_path / "curve.xyz") == 2
    assert ".svg" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert run(folder, "--plot", tmp_path / "curve.png") == 2
    assert "pip install" in capsys.readouterr().err


def test_means_of_images_too_small_for_ms_ssim():
    item = Measurement("a.png", 32, 32, 50, 100, 0.78, 780.0, 30.0, None, 0.1, 0.1)
    [point] = evaluate.means([item])
    assert point.ms_ssim_rgb is None
    assert point.overhead == pytest.approx(800 / 780 - 1)
