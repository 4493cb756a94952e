"""Pillow opens and saves .fic files by its own conventions."""

import gc
import io
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
from PIL import ContainerIO, Image, ImageCms, UnidentifiedImageError

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
    for wrong in (data[:10], data[:-1], b"x" + data, data[:12] + bytes([data[12] ^ 255]) + data[13:]):
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


class Unseekable(io.RawIOBase):
    """A pipe, which counts what was read of it."""

    def __init__(self, data: bytes):
        self.data, self.taken = data, 0

    def read(self, count: int = -1) -> bytes:
        end = len(self.data) if count < 0 else self.taken + count
        part = self.data[self.taken : end]
        self.taken += len(part)
        return part

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")


@pytest.mark.parametrize("extra", [b"x", b"\xf1FIC", bytes(300_000)])
@pytest.mark.parametrize("exif_bytes", [0, 60_000, 200_000])
def test_what_follows_the_file_is_ignored(photo, extra, exif_bytes):
    exif = b"Exif\0\0II*\0\x08\0\0\0" + bytes(6) + np.random.default_rng(1).bytes(exif_bytes)
    data = saved(photo, lossless=True, exif=exif if exif_bytes else None).getvalue()
    expected = np.asarray(Image.open(io.BytesIO(data)))
    stream = io.BytesIO(data + extra)
    image = Image.open(stream)
    assert (np.asarray(image) == expected).all()
    Image.open(io.BytesIO(data + extra)).verify()
    assert stream.tell() <= max(1 << 16, 2 * len(data))  # not much more is read than the file has
    assert image.info.get("exif", b"") == (exif if exif_bytes else b"")
    # Within a larger file, as a member of an archive, or from a pipe.
    within = ContainerIO.ContainerIO(io.BytesIO(b"before" + data + extra), 6, len(data))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("a.fic", data + extra)
    with zipfile.ZipFile(archive) as reader, reader.open("a.fic") as member:
        for source in (within, member, Unseekable(data + extra)):
            assert (np.asarray(Image.open(source)) == expected).all()
    with pytest.raises(CorruptStreamError, match="follow the last tile"):
        fastcodec.Codec.load("swift").decode(data + extra)  # which is strict


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [False, True])
def test_pixels_can_be_written(photo, mode, lossless):
    data = saved(photo.convert(mode), lossless=lossless)
    for image in (Image.open(data), fastcodec.Codec.load("swift").decode(data.getvalue(), out="pil")):
        pixels = image.load()
        value = (1, 2, 3, 4)[: len(mode)] if len(mode) > 1 else 1
        pixels[5, 6] = value
        assert image.getpixel((5, 6)) == value
        image.putpixel((6, 5), value)
        assert image.load()[6, 5] == value


@pytest.mark.parametrize("use", ["with", "load", "verify", "failed verify", "close"])
def test_no_file_is_left_open(photo, use, tmp_path):
    path = tmp_path / "a.fic"
    photo.save(path)
    if use == "failed verify":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        if use == "with":
            with Image.open(path) as image:
                assert image.size == photo.size
        elif use == "failed verify":
            with pytest.raises(OSError, match="CRC"):
                Image.open(path).verify()
        else:
            getattr(Image.open(path), use)()
        gc.collect()
    assert not caught


def test_metadata_given_at_saving_counts_instead_of_the_images(photo):
    def stored(image: Image.Image, **options) -> Image.Image:
        return Image.open(saved(image, lossless=True, **options))

    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", 6
    image = photo.copy()
    image.info |= {"icc_profile": SRGB, "exif": exif.tobytes(), "dpi": (100, 100)}
    again = stored(image)
    assert (again.info["icc_profile"], again.getexif()[0x010F], again.info["dpi"]) == (SRGB, "Camera", (100, 100))
    for nothing in (None, b"", Image.Exif()):
        if not isinstance(nothing, Image.Exif):
            assert "icc_profile" not in stored(image, icc_profile=nothing).info
        again = stored(image, exif=nothing)
        assert not {"exif", "dpi"} & set(again.info)
        assert again.size == photo.size  # as PNG's plugin has it: who leaves out the orientation does not turn
    other = Image.Exif()
    other[0x010F] = "Other"
    for given in (other, other.tobytes(), other.tobytes()[6:]):
        again = stored(image, exif=given)
        assert (again.getexif()[0x010F], again.size) == ("Other", photo.size)
    assert stored(image, dpi=(300, 200)).info["dpi"] == (200, 300)  # turned, as the picture is
    assert stored(image, exif=None, dpi=(300, 200)).info["dpi"] == (300, 200)
    assert image.info["exif"] == exif.tobytes()
    image.info = {"xmp": b'<x tiff:Orientation="6"/>'}
    assert stored(image).info["xmp"] == b'<x tiff:Orientation="1"/>'
    assert stored(image).size == photo.size[::-1]
    assert stored(image, exif=other).size == photo.size[::-1]
    again = stored(image, xmp=None)
    assert ("xmp" in again.info, again.size) == (False, photo.size)
    assert stored(photo, xmp=b"<x/>").info["xmp"] == b"<x/>"
    tiff = io.BytesIO()
    photo.save(tiff, "TIFF", tiffinfo={0x013B: "Artist"}, dpi=(50, 50))
    again = stored(Image.open(tiff), icc_profile=SRGB, dpi=(300, 300))
    assert (again.getexif()[0x013B], again.info["dpi"], again.info["icc_profile"]) == ("Artist", (300, 300), SRGB)


def test_lossless_is_obeyed_and_unknown_options_are_named(photo):
    assert (np.asarray(Image.open(saved(photo, lossless=True))) == np.asarray(photo)).all()
    assert saved(photo, lossless=False).getvalue() == saved(photo).getvalue()
    with pytest.warns(UserWarning, match="does not have: optimize, qualty; it has .*lossless.*quality"):
        saved(photo, lossless=True, qualty=5, optimize=True)


def test_pillows_limit_holds(photo, monkeypatch):
    stream = saved(photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(stream)


def test_several_frames_are_refused(photo):
    assert saved(photo, save_all=True).getvalue() == saved(photo).getvalue()
    for options in ({"save_all": True}, {}):
        with pytest.raises(ImageError, match="one image"):
            saved(photo, append_images=[photo], **options)
    frames = io.BytesIO()
    photo.save(frames, "GIF", save_all=True, append_images=[photo.rotate(90)])
    with pytest.raises(ImageError, match="one image"):
        saved(Image.open(frames), save_all=True)


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
