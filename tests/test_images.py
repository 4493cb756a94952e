"""Images in and out: every kind of input becomes the right 8-bit picture, or an error that names file and cause."""

import contextlib
import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from fastcodec import alpha, files, images
from fastcodec.errors import ImageError, LimitError
from fastcodec.files import replacing
from fastcodec.images import Picture, from_picture, read_picture, read_size, to_picture, write_picture
from fastcodec.png import read_ahead

RNG = np.random.default_rng(7)
COLOURS = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def through_file(image: Image.Image, suffix: str, folder: Path, **options) -> Picture:
    path = folder / f"image{suffix}"
    image.save(path, **options)
    return read_picture(path)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of samples that Pillow does not write: 16-bit colour, tRNS beside 16-bit gray."""
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in (head, *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return out


# ---- arrays and tensors


@pytest.mark.parametrize(
    "shape, mode", [((5, 6), "L"), ((5, 6, 1), "L"), ((5, 6, 2), "LA"), ((5, 6, 3), "RGB"), ((5, 6, 4), "RGBA")]
)
def test_arrays_and_tensors_round_trip(shape, mode):
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    picture = to_picture(array)
    assert (picture.mode, picture.width, picture.height) == (mode, 6, 5)
    assert picture.pixels.flags.c_contiguous
    assert (from_picture(picture, "numpy").reshape(shape) == array).all()
    image = from_picture(picture, "pil")
    assert image.mode == mode
    assert (np.asarray(image).reshape(shape) == array).all()
    tensor = from_picture(picture, "tensor")
    assert tensor.dtype == torch.uint8
    assert tensor.shape[1:] == (5, 6)
    for again in (to_picture(tensor), to_picture(image)):
        assert (from_picture(again, "numpy") == from_picture(picture, "numpy")).all()


def test_views_are_made_contiguous_and_contiguous_arrays_are_not_copied():
    assert np.shares_memory(to_picture(COLOURS).pixels, COLOURS)
    turned = to_picture(COLOURS[::-1, ::2])
    assert turned.pixels.flags.c_contiguous
    assert (turned.pixels == COLOURS[::-1, ::2]).all()
    assert from_picture(turned, "numpy") is turned.pixels


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        (np.zeros((3, 40, 50), np.uint8), ImageError, "channels seem to stand first"),
        (torch.zeros(40, 50, 3, dtype=torch.uint8), ImageError, "channels seem to stand last"),
        (np.zeros((2, 40, 50, 3), np.uint8), ImageError, "batch"),
        (np.zeros((40, 50, 5), np.uint8), ImageError, "1 to 4 channels"),
        (np.zeros(50, np.uint8), ImageError, r"\[H, W\]"),
        (np.zeros((0, 4), np.uint8), ImageError, "no pixels"),
        (np.zeros((4, 4), np.float32), TypeError, "float32"),
        (np.zeros((4, 4), np.uint16), TypeError, "uint16"),
        (torch.zeros(3, 4, 4), TypeError, "float32"),
        ("photo.png", TypeError, "not str"),
        (None, TypeError, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused_in_words(wrong, error, words):
    with pytest.raises(error, match=words):
        to_picture(wrong)


def test_picture_checks_its_arrays():
    with pytest.raises(TypeError, match="float64"):
        Picture(np.zeros((4, 4)))
    with pytest.raises(TypeError, match="alpha"):
        Picture(COLOURS, np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="jpeg"):
        from_picture(to_picture(COLOURS), "jpeg")


# ---- kinds of input


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_reset(orientation, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "STRIP_PIXELS", 500)  # several strips
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Camera"
    path = tmp_path / f"image{suffix}"
    Image.fromarray(COLOURS).save(path, exif=exif)
    picture = read_picture(path)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert (picture.pixels == upright).all()
    assert read_size(path) in ((53, 37), (37, 53))  # Pillow turns a TIFF's size already at opening
    if suffix != ".tif":  # where EXIF is the file's own structure
        kept = Image.Exif()
        kept.load(picture.exif)
        assert dict(kept) == {0x0112: 1, 0x010F: "Camera"}


def test_16_bit_gray_is_rounded_to_nearest(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for suffix in (".png", ".tif"):
        picture = through_file(Image.fromarray(values), suffix, tmp_path)
        assert (picture.pixels == np.round(values / 257)).all()
        assert picture.mode == "L"
        assert picture.notices == ("16-bit input reduced to 8 bits",)


def test_16_bit_gray_with_a_transparent_level(tmp_path):
    values = (np.arange(12).reshape(3, 4) * 5000).astype(">u2")
    (tmp_path / "a.png").write_bytes(png(4, 3, 16, 0, values.tobytes(), (b"tRNS", struct.pack(">H", 20000))))
    picture = read_picture(tmp_path / "a.png")
    assert picture.mode == "LA"
    assert (picture.alpha == np.where(values == 20000, 0, 255)).all()


@pytest.mark.parametrize("strip", [1, 1 << 22])
@pytest.mark.parametrize(
    "transparent", [(0x1234, 0x5678, 0x9ABC), (0, 0, 0), (0x12, 0x56, 0x9A), (0xFFFF, 0xFFFF, 0xFFFF)]
)
def test_16_bit_colour_with_a_transparent_colour(transparent, strip, tmp_path, monkeypatch):
    """Compared before it is reduced: neither another colour turns transparent, nor does it stay opaque."""
    monkeypatch.setattr(images, "STRIP_PIXELS", strip)
    values = np.empty((3, 4, 3), ">u2")
    values[:] = transparent
    values[0, 1] ^= np.array((0, 0, 1), ">u2")  # the same in its upper halves
    values[0, 2] ^= np.array((0x100, 0, 0), ">u2")  # the same in its lower halves
    values[1, 0] = np.array(transparent) & 255
    values[1, 1] = np.array(transparent) >> 8
    (tmp_path / "a.png").write_bytes(png(4, 3, 16, 2, values.tobytes(), (b"tRNS", struct.pack(">3H", *transparent))))
    picture = read_picture(tmp_path / "a.png")
    assert picture.mode == "RGBA"
    assert (picture.alpha == np.where((values == transparent).all(2), 0, 255)).all()
    assert (picture.pixels == values >> 8).all()
    assert picture.notices == ("16-bit input reduced to 8 bits",)
    # Of an image that the caller has loaded, only the upper halves are left; that is said where it shows.
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        loaded = to_picture(image)
    if max(transparent) > 255:
        assert (loaded.alpha == np.where((values >> 8 == np.array(transparent) >> 8).all(2), 0, 255)).all()
        assert "transparent" in loaded.notices[-1]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_level_of_any_depth(depth, tmp_path):
    """tRNS counts in the file's levels, which Pillow widens to 8 bits without it."""
    levels = np.arange(8)[None] % (1 << depth)
    bits = "".join(f"{level:0{depth}b}" for level in levels[0])
    row = int(bits, 2).to_bytes(depth, "big")
    for transparent in sorted({0, 1, (1 << depth) - 1}):
        (tmp_path / "a.png").write_bytes(png(8, 1, depth, 0, row, (b"tRNS", struct.pack(">H", transparent))))
        picture = read_picture(tmp_path / "a.png")
        assert picture.mode == "LA"
        assert (picture.pixels == levels * (255 // ((1 << depth) - 1))).all()
        assert (picture.alpha == np.where(levels == transparent, 0, 255)).all()


def test_looking_ahead_leaves_an_image_as_it_was(tmp_path):
    values = RNG.integers(0, 65536, (3, 4, 3)).astype(">u2")
    (tmp_path / "a.png").write_bytes(png(4, 3, 16, 2, values.tobytes(), (b"tRNS", bytes(6)), (b"tEXt", b"a\0b")))
    with Image.open(tmp_path / "a.png") as image:
        position = image.fp.tell()
        assert read_ahead(image, 2).colour == (0, 0, 0)
        assert image.fp.tell() == position
        to_picture(image)
        assert (np.asarray(image) == values >> 8).all()
        assert image.text == {"a": "b"}


@pytest.mark.parametrize("colour, channels, mode", [(2, 3, "RGB"), (6, 4, "RGBA"), (4, 2, "LA")])
def test_16_bit_colour_gets_a_notice(colour, channels, mode, tmp_path):
    values = RNG.integers(0, 65536, (3, 4, channels)).astype(">u2")
    (tmp_path / "a.png").write_bytes(png(4, 3, 16, colour, values.tobytes()))
    picture = read_picture(tmp_path / "a.png")
    assert picture.mode == mode
    assert "16-bit input reduced to 8 bits" in picture.notices
    got = from_picture(picture, "numpy").astype(int)
    assert np.abs(got - values.astype(float) / 257).max() <= 1.0


def test_wide_integers_and_floats(tmp_path):
    levels = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    picture = through_file(Image.fromarray(levels), ".tif", tmp_path)
    assert (picture.pixels == np.floor(levels * 255 + 0.5)).all()
    assert "floating-point" in picture.notices[0]
    picture = to_picture(Image.fromarray((levels * 65535).astype(np.int32)))
    assert (picture.pixels == np.round((levels * 65535).astype(np.int32) / 257)).all()
    for wrong in (levels * 3, levels - 1, levels * np.nan):
        with pytest.raises(ImageError, match="floating-point"):
            to_picture(Image.fromarray(wrong))
    with pytest.raises(ImageError, match="32-bit"):
        to_picture(Image.fromarray(np.full((3, 4), 70000, np.int32)))


def test_cmyk_becomes_rgb_without_its_profile(tmp_path):
    image = Image.fromarray(COLOURS).convert("CMYK")
    picture = through_file(image, ".jpg", tmp_path, icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 108, quality=100)
    assert picture.mode == "RGB"
    assert picture.icc is None
    assert picture.notices[0] == "CMYK input converted to RGB"
    assert "ICC" in picture.notices[1]
    with Image.open(tmp_path / "image.jpg") as image:
        assert (picture.pixels == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB"])
def test_other_colour_spaces_become_rgb(mode):
    image = Image.new(mode, (7, 5), (200, 100, 50))
    picture = to_picture(image)
    assert (picture.pixels == np.asarray(image.convert("RGB"))).all()
    assert picture.notices == (f"{mode} input converted to RGB",)


def test_palettes(tmp_path):
    picture = through_file(Image.fromarray(COLOURS).quantize(16), ".png", tmp_path)
    with Image.open(tmp_path / "image.png") as image:
        assert (picture.pixels == np.asarray(image.convert("RGB"))).all()
    assert (picture.mode, picture.notices) == ("RGB", ("palette input coded as RGB",))

    see_through = Image.fromarray(COLOURS).quantize(16)
    picture = through_file(see_through, ".png", tmp_path, transparency=3)
    assert picture.mode == "RGBA"
    assert ((picture.alpha == 0) == (np.asarray(see_through) == 3)).all()

    gray = Image.fromarray(COLOURS[..., 0]).convert("P")
    picture = through_file(gray, ".gif", tmp_path)
    assert picture.mode == "L"
    assert (picture.pixels == COLOURS[..., 0]).all()


def test_bilevel_and_transparent_levels(tmp_path):
    picture = through_file(Image.fromarray(COLOURS[..., 0]).convert("1"), ".png", tmp_path)
    assert picture.mode == "L"
    assert set(np.unique(picture.pixels)) == {0, 255}
    level, colour = int(COLOURS[0, 0, 0]), tuple(int(v) for v in COLOURS[0, 0])
    picture = through_file(Image.fromarray(COLOURS[..., 0]), ".png", tmp_path, transparency=level)
    assert picture.mode == "LA"
    assert ((picture.alpha == 0) == (COLOURS[..., 0] == level)).all()
    picture = through_file(Image.fromarray(COLOURS), ".png", tmp_path, transparency=colour)
    assert picture.mode == "RGBA"
    assert picture.alpha[0, 0] == 0
    assert (picture.pixels == COLOURS).all()


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    for suffix in (".png", ".gif", ".webp"):
        options = {"lossless": True} if suffix == ".webp" else {}
        picture = through_file(frames[0], suffix, tmp_path, save_all=True, append_images=frames[1:], **options)
        assert (picture.pixels[..., :3] == (255, 0, 0)).all()
        assert any("only the first" in notice for notice in picture.notices)


def test_strips_join_without_a_seam(tmp_path, monkeypatch):
    tall = RNG.integers(0, 256, (301, 17, 4), dtype=np.uint8)
    monkeypatch.setattr(images, "STRIP_PIXELS", 17 * 40)
    for mode in ("RGBA", "LA", "L", "RGB"):
        image = Image.fromarray(tall).convert(mode)
        assert (from_picture(to_picture(image), "numpy") == np.asarray(image)).all()


# ---- metadata


def test_metadata_goes_in_and_out(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    for suffix in (".png", ".jpg", ".webp"):
        picture = through_file(Image.fromarray(COLOURS), suffix, tmp_path, icc_profile=SRGB, exif=exif)
        assert picture.icc == SRGB
        image = from_picture(picture, "pil")
        assert image.info["icc_profile"] == SRGB
        assert image.getexif()[0x010F] == "Camera"
        write_picture(tmp_path / f"again{suffix}", picture)
        again = read_picture(tmp_path / f"again{suffix}")
        assert (again.icc, again.exif) == (picture.icc, picture.exif)


# ---- files that cannot be read


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = io.BytesIO()
    Image.fromarray(COLOURS).resize((400, 300)).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:5000])
    whole = io.BytesIO()
    Image.fromarray(COLOURS).resize((400, 300)).save(whole, "PNG")
    (folder / "cut.png").write_bytes(whole.getvalue()[:5000])
    (folder / "head.png").write_bytes(whole.getvalue()[:20])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image at all")
    (folder / "coded.png").write_bytes(b"\xf1FIC" + bytes(40))
    (folder / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    words = {
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "head.png": "",
        "empty.png": "empty",
        "text.png": "not an image",
        "coded.png": ".fic",
        "page.eps": "",
        "folder.png": "directory",
        "pipe.png": "not a regular file",
        "missing.png": "no such file",
    }
    return {name: (folder / name, text) for name, text in words.items()}


def test_bad_files_are_named_with_the_cause(tmp_path):
    for path, words in bad_files(tmp_path).values():
        with pytest.raises(ImageError) as caught:
            read_picture(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert message.count(str(path)) == 1
        assert words in message
        assert "\n" not in message


def test_unreadable_for_lack_of_permission(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(images, "open", refuse, raising=False)  # root may read everything
    with pytest.raises(ImageError, match=r"a\.png: permission denied"):
        read_picture(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_our_limit_stands_in_for_pillows(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow alone would refuse over 200
    assert read_picture(path).width == 53
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(LimitError, match=r"a.png: 53 x 37 pixels exceed the limit of 1000"):
        read_picture(path, max_pixels=1000)
    with pytest.raises(LimitError, match=r"a.png"):
        read_picture(path, max_pixels=200)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_forged_size_is_refused_before_it_is_allocated(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(60000, 60000, 8, 2, bytes(60000)))
    with pytest.raises(LimitError, match=r"bomb\.png"):
        read_picture(tmp_path / "bomb.png")


# ---- writing


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".ppm", ".webp", ".jp2"])
def test_lossless_formats_return_the_pixels(suffix, tmp_path):
    picture = to_picture(COLOURS)
    write_picture(tmp_path / f"a{suffix}", picture)
    assert (read_picture(tmp_path / f"a{suffix}").pixels == COLOURS).all()


@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_written_or_refused(channels, tmp_path):
    picture = to_picture(RNG.integers(0, 256, (9, 11, channels), dtype=np.uint8))
    for suffix in (".png", ".webp"):
        write_picture(tmp_path / f"a{suffix}", picture)
        assert (read_picture(tmp_path / f"a{suffix}").alpha == picture.alpha).all()
    with pytest.raises(ImageError, match=r"a\.jpg: .*mode.*PNG"):
        write_picture(tmp_path / "a.jpg", picture)
    for name in Image.registered_extensions():
        try:
            write_picture(tmp_path / f"b{name}", picture)
        except ImageError:
            assert not (tmp_path / f"b{name}").exists()
        else:
            back = read_picture(tmp_path / f"b{name}")
            assert back.alpha is not None
            assert back.alpha.shape == picture.alpha.shape
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "a.jpg").exists()


@pytest.mark.filterwarnings("ignore:IM image format")
def test_every_format_keeps_the_picture_or_is_refused(tmp_path):
    for picture in (to_picture(COLOURS), to_picture(COLOURS[..., 0])):
        for name in Image.registered_extensions():
            with contextlib.suppress(ImageError):
                write_picture(tmp_path / f"a{name}", picture)
                assert read_picture(tmp_path / f"a{name}").pixels.shape[:2] == COLOURS.shape[:2]
    for name in ("eps", "pdf", "ico", "icns"):
        assert not (tmp_path / f"a.{name}").exists()


def test_where_it_cannot_be_written(tmp_path):
    picture = to_picture(COLOURS)
    for name, words in (("a", "no suffix"), ("a.xyz", r"'\.xyz'"), ("a.fic2", r"'\.fic2'")):
        with pytest.raises(ImageError, match=words):
            write_picture(tmp_path / name, picture)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.png"):
        write_picture(tmp_path / "folder.png", picture)
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.png"):
        write_picture(tmp_path / "nowhere" / "a.png", picture)


def test_a_background_is_rounded_to_nearest_and_keeps_what_still_describes_it(monkeypatch):
    monkeypatch.setattr(alpha, "STRIP_PIXELS", 256)  # several strips
    values, opacity = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    profile = b"\0" * 16 + b"GRAY" + b"\0" * 108
    picture = Picture(np.ascontiguousarray(values), np.ascontiguousarray(opacity), profile, b"II*\0")
    for colour in ((0, 0, 0), (200, 200, 200), (1, 2, 255)):
        flat = alpha.flatten(picture, colour)
        exact = (opacity.astype(int) * values)[..., None] + (255 - opacity.astype(int))[..., None] * np.array(colour)
        gray = colour != (1, 2, 255)
        assert (flat.pixels == np.rint(exact[..., 0] / 255 if gray else exact / 255)).all()
        assert (flat.alpha, flat.icc, flat.exif) == (None, profile if gray else None, b"II*\0")
    assert alpha.flatten(flat, (9, 9, 9)) is flat


def write_half(path: Path, error: BaseException) -> None:
    with replacing(path) as stream:
        stream.write(b"half of the ne")
        raise error


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.fic"
    path.write_bytes(b"old")
    for error in (KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), ValueError("x")):
        with pytest.raises(type(error)) as caught:
            write_half(path, error)
        if isinstance(error, OSError):
            assert caught.value.filename == str(path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"


def write_new(path: Path, data: bytes) -> None:
    with replacing(path, overwrite=False) as stream:
        stream.write(data)


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_replaced_unasked(links, tmp_path, monkeypatch):
    """Whether it was there before or came in the meantime, on file systems with and without links."""
    if not links:
        refusal = OSError(errno.EPERM, "Operation not permitted")
        monkeypatch.setattr(files.os, "link", lambda *_: (_ for _ in ()).throw(refusal))
    path = tmp_path / "a.fic"
    write_new(path, b"first")
    write_new(path, b"first")  # the same: nothing is lost
    with pytest.raises(FileExistsError) as caught:
        write_new(path, b"other")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"first"
    path.unlink()
    writing = replacing(path, overwrite=False)
    writing.__enter__().write(b"other")
    path.write_bytes(b"meanwhile")
    with pytest.raises(FileExistsError):
        writing.__exit__(None, None, None)
    assert path.read_bytes() == b"meanwhile"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    write_new(path, b"new")
    assert not path.is_symlink()
    assert [p.name for p in tmp_path.iterdir()] == ["a.fic"]
    assert path.stat().st_nlink == 1


@pytest.mark.parametrize("name", ["x" * 255, "\N{GREEK SMALL LETTER OMEGA}" * 127 + "x", "y"])
def test_names_at_the_limit_of_the_file_system(name, tmp_path):
    """Also where that is lower than usual: the temporary name does not grow with the final one."""
    with replacing(tmp_path / name) as stream:
        stream.write(b"new")
        (temporary,) = tmp_path.iterdir()
        assert len(os.fsencode(temporary.name)) < 20
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_is_unfinished_can_be_discarded(tmp_path):
    writing = replacing(tmp_path / "a.fic")
    writing.__enter__().write(b"half")
    assert len(list(tmp_path.iterdir())) == 1
    files.discard_unfinished()
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        writing.__exit__(None, None, None)


def test_new_files_have_the_permissions_of_ordinary_ones(tmp_path):
    with replacing(tmp_path / "ours") as stream:
        stream.write(b"")
    (tmp_path / "ordinary").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
