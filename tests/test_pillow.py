"""Pillow opens and saves .fic files by its own conventions."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms, UnidentifiedImageError

import fastcodec
import fastcodec.pillow
from fastcodec.errors import CorruptStreamError, ImageError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def photo(photographs) -> Image.Image:
    return Image.fromarray(photographs["chelsea"][:96, :120])


def saved(image: Image.Image, **options) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, "FIC", **options)
    stream.seek(0)
    return stream


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a.astype(float) - b) ** 2) / 255**2))


def test_round_trip_by_name(photo, tmp_path):
    path = tmp_path / "photo.fic"
    photo.save(path, quality=80)
    with Image.open(path) as image:
        assert (image.format, image.size, image.mode) == ("FIC", photo.size, "RGB")
        assert image.get_format_mimetype() == "image/x-fic"
        assert image.info["quality"] == 80
        decoded = np.asarray(image)
    assert psnr(decoded, np.asarray(photo)) > 28
    assert path.read_bytes() == fastcodec.Codec.load("swift").encode(photo, quality=80)
    assert (decoded == np.asarray(fastcodec.Codec.load("swift").decode(path.read_bytes()))).all()


def test_quality_and_preset_reach_the_codec(photo):
    sizes = [len(saved(photo, quality=q).getvalue()) for q in (10, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    assert len(saved(photo).getvalue()) == sizes[1]
    assert Image.open(saved(photo, preset="latency")).size == photo.size
    with pytest.raises(ValueError, match="quality"):
        saved(photo, quality=101)


def test_alpha_is_lossless(photo):
    alpha = Image.linear_gradient("L").resize(photo.size)
    for base in (photo, photo.convert("L")):
        image = base.copy()
        image.putalpha(alpha)
        again = Image.open(saved(image))
        assert again.mode == image.mode
        assert (np.asarray(again.getchannel("A")) == np.asarray(alpha)).all()


def test_metadata_is_kept(photo):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", 6
    again = Image.open(saved(photo, icc_profile=SRGB, exif=exif))
    assert again.info["icc_profile"] == SRGB
    assert again.getexif()[0x010F] == "Camera"
    # What the orientation says has been done.
    assert again.getexif()[0x0112] == 1
    assert again.size == photo.size[::-1]
    image = photo.copy()
    image.info["icc_profile"] = SRGB
    assert Image.open(saved(image)).info["icc_profile"] == SRGB
    assert "icc_profile" not in photo.info
    assert "exif" not in Image.open(saved(photo)).info


def test_opening_decodes_nothing(photo, tmp_path):
    photo.save(tmp_path / "a.fic")
    code = (
        "import sys, fastcodec.pillow; from PIL import Image; im = Image.open(sys.argv[1]);"
        "print(im.size, im.mode, 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, tmp_path / "a.fic"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout.strip() == "(120, 96) RGB False"


def test_damage(photo, tmp_path):
    data = saved(photo).getvalue()
    for wrong in (data[:10], data[:-1], data + b"x", data[:12] + bytes([data[12] ^ 255]) + data[13:]):
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(wrong))
    flipped = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
    image = Image.open(io.BytesIO(flipped))
    with pytest.raises(OSError, match="CRC") as caught:
        image.load()
    assert isinstance(caught.value.__cause__, CorruptStreamError)
    with pytest.raises(OSError, match="CRC"):
        Image.open(io.BytesIO(flipped)).verify()
    Image.open(io.BytesIO(data)).verify()


def test_pillows_limit_holds(photo, monkeypatch):
    stream = saved(photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(stream)


def test_several_frames_are_refused(photo):
    assert saved(photo, save_all=True).getvalue() == saved(photo).getvalue()
    with pytest.raises(ImageError, match="one image"):
        saved(photo, save_all=True, append_images=[photo])


def test_a_failed_save_leaves_no_file(photo, tmp_path):
    with pytest.raises(ImageError):
        Image.new("F", (4, 4), 7.0).save(tmp_path / "a.fic")
    assert not list(tmp_path.iterdir())


def test_the_file_is_closed_after_loading(photo, tmp_path):
    photo.save(tmp_path / "a.fic")
    image = Image.open(tmp_path / "a.fic")
    image.load()
    assert image.fp is None
    assert image.copy().resize((10, 10)).size == (10, 10)
    assert image.load() is not None
