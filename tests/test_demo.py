"""The demo: what it finds, what it leaves behind, and that its comparison is fair."""

import numpy as np
import pytest
from PIL import Image

from fastcodec import Codec, demo, info


@pytest.fixture
def folder(tmp_path, photographs):
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(photographs["chelsea"][40:200, 60:260]).save(folder / "cat.png")
    Image.fromarray(photographs["coffee"][100:228, 100:190, 1]).save(folder / "gray.png")
    return folder


def test_it_leaves_files_and_a_picture(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert demo.main([str(folder), "--out", str(out)]) == 0
    names = {f"{stem}-q{q}.{suffix}" for stem in ("cat", "gray") for q in demo.QUALITIES for suffix in ("fic", "png")}
    assert {path.name for path in out.iterdir()} == names | {"side-by-side.png"}
    codec = Codec.load("swift")
    for quality in demo.QUALITIES:
        data = (out / f"cat-q{quality}.fic").read_bytes()
        assert info(data).quality == quality
        decoded = codec.decode(data, out="numpy").astype(int)
        with Image.open(out / f"cat-q{quality}.png") as image:
            assert np.abs(decoded - np.asarray(image)).max() <= 1
    printed = capsys.readouterr().out.replace("\n", "")
    assert "side-by-side.png" in printed
    assert "200×160" in printed


def test_names_are_not_taken_for_markup(folder, tmp_path, capsys):
    (folder / "cat.png").rename(folder / "[bold]cat.png")
    (folder / "gray.png").unlink()
    out = tmp_path / "[out" / "]"
    assert demo.main([str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.replace("\n", "")
    assert "[bold]cat" in printed
    assert str(out) in printed


def test_bad_images_are_left_out(folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"\x89PNG nothing more")
    assert demo.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "broken.png" in capsys.readouterr().out
    for image in ("cat.png", "gray.png"):
        (folder / image).unlink()
    assert demo.main([str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "no photograph" in capsys.readouterr().err


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    assert demo.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no image" in capsys.readouterr().err


def test_photographs_are_found_without_a_folder(tmp_path, monkeypatch):
    skimage = pytest.importorskip("skimage")
    monkeypatch.setenv("FASTCODEC_KODAK", str(tmp_path))
    files = demo.find_photographs()
    assert len(files) >= 4
    assert all(file.is_file() and file.is_relative_to(next(iter(skimage.__path__))) for file in files)
    for stem in demo._KODAK_CHOICE:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{stem}.png")
    assert demo.find_photographs() == [tmp_path / f"{stem}.png" for stem in demo._KODAK_CHOICE]


def test_jpeg_gets_the_best_that_fits(photographs):
    pixels = np.ascontiguousarray(photographs["rocket"][:200, :300])
    _, size = demo.jpeg_of_size(pixels, 5000)
    assert 4000 < size <= 5000
    decoded, smallest = demo.jpeg_of_size(pixels, 10)
    assert smallest > 10
    assert decoded.shape == pixels.shape


def result(name: str, quality: int, ours: int, theirs: int, jpeg_bytes: int = 100) -> demo.Result:
    """A result whose images are off by so many levels."""
    original = np.tile(np.arange(64, dtype=np.uint8), (64, 1))[..., None].repeat(3, axis=2) + np.uint8(90)
    return demo.Result(
        name, quality, original, original + np.uint8(ours), original + np.uint8(theirs), 100, jpeg_bytes, 1, 1
    )


def test_the_picture_shows_a_fair_and_usable_comparison():
    poor, unfair = result("poor", 15, 40, 100), result("unfair", 15, 2, 100, jpeg_bytes=101)
    plain, telling = result("plain", 45, 4, 6), result("telling", 45, 4, 12)
    assert demo.choose([poor, unfair, plain, telling]).name == "telling"
    assert demo.choose([poor]).name == "poor"
    assert demo.choose([unfair]).name == "unfair"


def test_the_crop_is_where_jpeg_fails():
    random = np.random.default_rng(1)
    original = random.integers(100, 140, (256, 384, 3), dtype=np.uint8)
    jpeg = original.copy()
    jpeg[150:200, 280:330] += 30
    item = demo.Result("x", 15, original, original, jpeg, 100, 100, 1, 1)
    left, top = demo.telling_crop(item, 96)
    assert 234 <= left <= 280
    assert 104 <= top <= 150


@pytest.mark.parametrize("shape", [(40, 30), (31, 500, 3), (900, 200, 3), (700, 1000, 3)])
def test_any_shape_can_be_composed(shape):
    random = np.random.default_rng(2)
    original, decoded, jpeg = (random.integers(0, 256, shape, dtype=np.uint8) for _ in range(3))
    image = demo.compose(demo.Result("shape", 45, original, decoded, jpeg, 100, 90, 1, 1))
    assert image.width < 2500
    assert image.height < 2600
