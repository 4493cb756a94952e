"""Metadata on its way through: what Pillow obeyed is not obeyed again, what fits is kept, what does not is said."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from fastcodec import images, metadata
from fastcodec.errors import LimitError
from fastcodec.images import Picture, from_picture, read_picture, to_picture, write_picture

RNG = np.random.default_rng(11)
COLOURS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION, MAKE = 0x0112, 0x010F
# Every type of TIFF's and BigTIFF's values, as Pillow numbers them.
TYPES = {
    "BYTE": (1, "B"), "ASCII": (2, "text"), "SHORT": (3, "H"), "LONG": (4, "I"), "RATIONAL": (5, "II"),
    "SBYTE": (6, "b"), "UNDEFINED": (7, "B"), "SSHORT": (8, "h"), "SLONG": (9, "i"), "SRATIONAL": (10, "ii"),
    "FLOAT": (11, "f"), "DOUBLE": (12, "d"), "IFD": (13, "I"), "LONG8": (16, "Q"),
}  # fmt: skip
OBEYED = set(TYPES) - {"BYTE", "ASCII", "UNDEFINED"}  # by Pillow, to which those three are no numbers


def entry(order: str, tag: int, kind: str, value: int) -> tuple[int, int, int, bytes]:
    number, code = TYPES[kind]
    if code == "text":
        return tag, number, 2, f"{value}\0".encode()
    return tag, number, 1, struct.pack(order + code, *([value, 1][: len(code)]))


def exif_of(order: str, entries: list[tuple[int, int, int, bytes]], following: bytes = b"") -> bytes:
    """EXIF of one directory, written by hand; `following` is a whole second directory."""
    at = 8 + 2 + 12 * len(entries) + 4
    directory, data = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            value, data = struct.pack(order + "I", at + len(data)), data + value
        directory += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + directory + struct.pack(order + "I", at + len(data) if following else 0) + data + following


def png_bytes(image: Image.Image, *chunks: tuple[bytes, bytes], **options) -> bytes:
    """A PNG with chunks of the caller's before the pixels."""
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    data, extra = stream.getvalue(), b""
    for kind, body in chunks:
        extra += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + extra + data[33:]


def check_upright(codec, data: bytes, expected: np.ndarray) -> Picture:
    """Through the codec, out by Pillow in three formats, and in again: nobody turns the picture any more."""
    with Image.open(io.BytesIO(data)) as image:
        picture = to_picture(image)
    assert np.array_equal(picture.pixels, expected)
    decoded = codec.decode(codec.encode(picture, lossless=True), out="picture")
    image = from_picture(decoded, "pil")
    for name in ("PNG", "JPEG", "WEBP"):
        stream = io.BytesIO()
        image.save(stream, name, exif=image.info.get("exif", b""))
        with Image.open(stream) as again:
            turned = ImageOps.exif_transpose(again)
            assert turned.size == (expected.shape[1], expected.shape[0])
            assert np.array_equal(np.asarray(turned), np.asarray(again))
    return decoded


# ---- orientation


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", TYPES)
def test_an_orientation_of_any_type_is_not_obeyed_twice(codec, kind, order):
    for orientation in (1, 3, 6, 8):
        exif = exif_of(order, [entry(order, MAKE, "ASCII", 77), entry(order, ORIENTATION, kind, orientation)])
        data = png_bytes(Image.fromarray(COLOURS), exif=exif)
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert (expected.shape == COLOURS.shape) == (orientation in (1, 3) or kind not in OBEYED)
        decoded = check_upright(codec, data, expected)
        assert struct.pack(order + "HHIHH", ORIENTATION, 3, 1, 1, 0) in decoded.exif
        assert b"77" in decoded.exif


@pytest.mark.parametrize("prefixes", [0, 1, 2, 3])
def test_a_repeated_prefix_hides_no_orientation(codec, prefixes):
    exif = b"Exif\0\0" * prefixes + exif_of(">", [entry(">", ORIENTATION, "SHORT", 6)])
    data = png_bytes(Image.fromarray(COLOURS), exif=b"Exif\0\0" + exif)  # of which Pillow takes one away
    turned = prefixes < 2  # and reads EXIF behind two at most
    decoded = check_upright(codec, data, np.rot90(COLOURS, -1) if turned else COLOURS)
    assert decoded.exif[:4] == b"MM\0*"
    assert metadata.upright_exif(decoded.exif) == decoded.exif


def test_every_duplicate_of_the_orientation_is_reset(codec):
    tags = [entry("<", ORIENTATION, "SHORT", 6), entry("<", MAKE, "ASCII", 77), entry("<", ORIENTATION, "LONG", 8)]
    for entries in (tags, tags[::-1]):
        data = png_bytes(Image.fromarray(COLOURS), exif=exif_of("<", entries))
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        decoded = check_upright(codec, data, expected)
        assert decoded.exif.count(struct.pack("<HHIHH", ORIENTATION, 3, 1, 1, 0)) == 2


def test_the_thumbnails_own_orientation_stays():
    thumbnail = exif_of("<", [entry("<", ORIENTATION, "SHORT", 6)])[8:]
    exif = exif_of("<", [entry("<", ORIENTATION, "SHORT", 6)], thumbnail)
    upright = metadata.upright_exif(exif)
    assert upright.endswith(thumbnail)
    assert upright.count(struct.pack("<HHIHH", ORIENTATION, 3, 1, 1, 0)) == 1


def test_resetting_the_orientation_changes_nothing_else():
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = 6, "Camera"
    before = exif.tobytes().removeprefix(b"Exif\0\0") + b"a maker's note"
    after = metadata.upright_exif(before)
    assert len(after) == len(before)
    assert sum(a != b for a, b in zip(after, before, strict=True)) == 1
    for damaged in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", before[:20], b"nonsense" * 9):
        assert metadata.upright_exif(damaged) == damaged


def test_a_png_of_imagemagick_has_exif_in_hexadecimal(codec):
    exif = exif_of(">", [entry(">", ORIENTATION, "SHORT", 6), entry(">", MAKE, "ASCII", 77)])
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n")
    decoded = check_upright(codec, png_bytes(Image.fromarray(COLOURS), pnginfo=text), np.rot90(COLOURS, -1))
    assert decoded.exif == metadata.upright_exif(exif)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it reads
@pytest.mark.parametrize("exif", [b"garbage of some length", b"II*\0\xff\xff\xff\xff", b"II+\0\x08\0\0\0" + bytes(40)])
def test_exif_that_cannot_be_read_is_left_out_and_the_picture_is_not(exif):
    data = png_bytes(Image.fromarray(COLOURS), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        picture = to_picture(image)
    assert np.array_equal(picture.pixels, COLOURS)
    assert picture.exif is None
    assert any("EXIF cannot be read" in notice for notice in picture.notices)


# ---- XMP


def xmp_of(orientation: str) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {orientation}</rdf:Description></rdf:RDF>'
        "</x:xmpmeta><!-- ä -->"
    ).encode()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize(
    "written", ['tiff:Orientation="{}">', "><tiff:Orientation>{}</tiff:Orientation>"], ids=["attribute", "element"]
)
def test_xmp_goes_in_and_out_and_its_orientation_is_not_obeyed_twice(codec, suffix, written, tmp_path):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp_of(written.format(6)))
    tags = {"pnginfo": text} if suffix == ".png" else {"tiffinfo": {700: xmp_of(written.format(6))}}
    options = tags if suffix in (".png", ".tif") else {"xmp": xmp_of(written.format(6))}
    path = tmp_path / f"a{suffix}"
    Image.fromarray(COLOURS).save(path, **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape == (7, 5, 3)
    picture = read_picture(path)
    assert np.array_equal(picture.pixels, expected)
    if suffix == ".tif":  # Pillow has taken it out as it turned the picture
        assert b"Orientation" not in picture.xmp or b"Orientation></" in picture.xmp
    else:
        assert picture.xmp == xmp_of(written.format(1))
    assert picture.notices == ()
    data = codec.encode(picture, lossless=True)
    assert codec.decode(data).info["xmp"] == picture.xmp
    write_picture(tmp_path / f"b{suffix}", codec.decode(data, out="picture"))
    again = read_picture(tmp_path / f"b{suffix}")
    assert (again.xmp, again.pixels.shape) == (picture.xmp, (7, 5, 3))
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert ImageOps.exif_transpose(image).size == (5, 7)


@pytest.mark.parametrize(
    "before, after",
    [
        ("tiff:Orientation='6'>", "tiff:Orientation='1'>"),
        ('tiff:Orientation = "8" >', 'tiff:Orientation = "1" >'),
        ("><tiff:Orientation >\n 3 </tiff:Orientation>", "><tiff:Orientation >\n 1 </tiff:Orientation>"),
        ('tiff:Orientation="06">', 'tiff:Orientation="01">'),
        ('tiff:Orientation="6" a:b="tiff:Orientation">', 'tiff:Orientation="1" a:b="tiff:Orientation">'),
        (
            'xmlns:t="http://ns.adobe.com/tiff/1.0/" t:Orientation="6" u:Orientation="6">',
            'xmlns:t="http://ns.adobe.com/tiff/1.0/" t:Orientation="1" u:Orientation="6">',
        ),
        ('my.tiff:Orientation="6" tiff:OrientationNote="6">6', 'my.tiff:Orientation="6" tiff:OrientationNote="6">6'),
        ("><tiff:Orientation/>6<tiff:Orientation />6", "><tiff:Orientation/>6<tiff:Orientation />6"),
        ('><tiff:Orientation a="b">6</tiff:Orientation>6', '><tiff:Orientation a="b">1</tiff:Orientation>6'),
    ],
)
def test_every_form_of_xmps_orientation_is_reset_and_nothing_else(before, after):
    assert metadata.upright_xmp(xmp_of(before)) == xmp_of(after)


def test_hostile_xmp_takes_no_time():
    names = b" ".join(b'xmlns:a%d="http://ns.adobe.com/tiff/1.0/"' % number for number in range(1 << 15))
    for text in (
        names,
        b"tiff:Orientation",
        b"tiff:Orientation ",
        b" ",
        b"tiff:Orientation=",
        b"xmlns:",
        b"xmlns:a=",
        b"<",
    ):
        hostile = text * max(1, (1 << 20) // len(text))
        start = time.perf_counter()
        assert metadata.upright_xmp(hostile) == hostile
        assert time.perf_counter() - start < 5


def test_exif_counts_before_xmp_and_both_are_reset(codec):
    stream = io.BytesIO()
    exif = exif_of("<", [entry("<", ORIENTATION, "SHORT", 3)])
    Image.fromarray(COLOURS).save(stream, "WEBP", lossless=True, exif=exif, xmp=xmp_of('tiff:Orientation="6">'))
    decoded = check_upright(codec, stream.getvalue(), COLOURS[::-1, ::-1])
    assert decoded.xmp == xmp_of('tiff:Orientation="1">')
    assert metadata.upright_exif(decoded.exif) == decoded.exif


def test_what_a_jpeg_cannot_hold_is_left_out_and_said(tmp_path):
    """A PNG's EXIF and XMP may be longer than a segment of a JPEG."""
    exif = exif_of("<", [entry("<", MAKE, "ASCII", 77)])
    fits, too_long = bytes(65504), bytes(65505)
    assert write_picture(tmp_path / "a.jpg", Picture(COLOURS, xmp=fits, exif=exif.ljust(65527, b"\0"))) == ()
    assert (len(read_picture(tmp_path / "a.jpg").xmp), len(read_picture(tmp_path / "a.jpg").exif)) == (65504, 65527)
    notices = write_picture(tmp_path / "a.jpg", Picture(COLOURS, xmp=too_long, exif=exif.ljust(65528, b"\0")))
    assert [notice.split(" of ")[0] for notice in notices] == ["the EXIF", "the XMP"]
    assert (read_picture(tmp_path / "a.jpg").xmp, read_picture(tmp_path / "a.jpg").exif) == (None, None)
    for suffix in (".png", ".webp", ".tif"):
        assert write_picture(tmp_path / f"a{suffix}", Picture(COLOURS, xmp=too_long, exif=exif)) == ()
        assert read_picture(tmp_path / f"a{suffix}").xmp == too_long


def test_extended_xmp_is_named(tmp_path):
    xmp = xmp_of('xmpNote:HasExtendedXMP="0123456789ABCDEF0123456789ABCDEF">')
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", xmp=xmp)
    assert read_picture(tmp_path / "a.jpg").notices == ("its extended XMP: left out",)


def test_metadata_that_no_reader_would_accept_is_left_out_and_said(codec):
    image = Image.fromarray(COLOURS)
    profile = SRGB.ljust((1 << 24) + 1, b"\0")
    image.info |= {"xmp": bytes((1 << 24) + 1), "icc_profile": profile, "exif": exif_of("<", []).ljust(1 << 25, b"\0")}
    picture = to_picture(image)
    assert (picture.icc, picture.exif, picture.xmp) == (None, None, None)
    assert [notice.split(" of ")[0] for notice in picture.notices] == ["its ICC profile", "its EXIF", "its XMP"]
    image.info |= {"xmp": bytes(1 << 24), "icc_profile": profile[:-1]}
    codec.decode(codec.encode(to_picture(image), lossless=True))


# ---- resolution


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("dpi", [(72, 72), (300, 300), (204, 98), (96.012, 96.012)])
def test_resolution_goes_in_and_out(codec, suffix, dpi, tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / f"a{suffix}", dpi=dpi)
    with Image.open(tmp_path / f"a{suffix}") as image:
        before = image.info["dpi"]
    data = codec.encode(read_picture(tmp_path / f"a{suffix}"), lossless=True)
    assert data[4] == 2  # as before there was any: no reader is shut out
    decoded = codec.decode(data)
    assert decoded.info["dpi"] == pytest.approx(before, abs=1e-4)
    write_picture(tmp_path / f"b{suffix}", codec.decode(data, out="picture"))
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.info["dpi"] == pytest.approx(before, abs=1e-4)


def test_resolution_joins_exif_without_moving_anything(tmp_path):
    exif = Image.Exif()
    exif[MAKE] = "Camera"
    exif.get_ifd(0x8769)[0x927C] = b"a maker's note, with offsets"
    before = exif.tobytes().removeprefix(b"Exif\0\0")
    Image.fromarray(COLOURS).save(tmp_path / "a.png", dpi=(300, 300), exif=exif)
    after = read_picture(tmp_path / "a.png").exif
    assert after[8 : len(before)] == before[8:]
    again = Image.Exif()
    again.load(after)
    assert again[MAKE] == "Camera"
    assert again.get_ifd(0x8769)[0x927C] == b"a maker's note, with offsets"
    assert float(again[0x011A]) == pytest.approx(299.9994)
    # What EXIF says already is left as it is, but for what rounding in the other place may have done.
    Image.fromarray(COLOURS).save(tmp_path / "a.png", dpi=(300, 300), exif=after)
    assert read_picture(tmp_path / "a.png").exif == after
    # Where the two differ, what Pillow tells is kept.
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", dpi=(72, 72), exif=after)
    assert metadata.exif_resolution(read_picture(tmp_path / "a.jpg").exif) == (72, 72)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_resolution_is_turned_with_the_picture(suffix, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(COLOURS).save(tmp_path / f"a{suffix}", dpi=(200, 100), exif=exif)
    picture = read_picture(tmp_path / f"a{suffix}")
    assert picture.pixels.shape == (7, 5, 3)
    assert metadata.exif_resolution(picture.exif) == pytest.approx((100, 200), abs=0.02)


@pytest.mark.parametrize("dpi", [(0, 0), (-1, 5), (float("nan"), 72), (1e300, 1), ("a", 1), 5, (1, 2, 3), None])
def test_a_resolution_of_nonsense_is_none(dpi):
    image = Image.fromarray(COLOURS)
    image.info["dpi"] = dpi
    assert to_picture(image).exif is None


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_any_bytes_is_read_and_written_without_an_error(order):
    whole = exif_of(order, [entry(order, MAKE, "ASCII", 77), entry(order, ORIENTATION, "RATIONAL", 6)])
    whole = metadata.with_resolution(whole, (300, 200))
    generator = np.random.default_rng(5)
    read = 0
    for _ in range(3000):
        exif = bytearray(whole[: generator.integers(len(whole) + 1)] if generator.random() < 0.3 else whole)
        for _ in range(generator.integers(4)):
            if exif:
                exif[generator.integers(len(exif))] = generator.integers(256)
        upright = metadata.upright_exif(bytes(exif))
        assert len(upright) == len(exif)
        metadata.exif_resolution(upright)
        again = metadata.with_resolution(upright, (72, 96))
        if metadata.is_readable(upright):
            read += 1
            assert metadata.exif_resolution(again) == pytest.approx((72, 96))
    assert read > 1000
    full = struct.pack(order + "H", 0xFFFF) + bytes(12 * 0xFFFF)
    full = whole[:4] + struct.pack(order + "I", 8) + full
    assert metadata.with_resolution(full, (72, 96)) == full


def test_resolution_in_centimetres_and_without_a_unit():
    for unit, expected in ((1, None), (2, (50, 50)), (3, (127, 127)), (9, None)):
        value = struct.pack("<II", 100, 2)
        entries = [(0x011A, 5, 1, value), (0x011B, 5, 1, value), (0x0128, 3, 1, struct.pack("<H", unit))]
        found = metadata.exif_resolution(exif_of("<", entries))
        assert found == (expected and pytest.approx(expected))
    assert metadata.exif_resolution(exif_of("<", [(0x011A, 5, 1, bytes(8)), (0x011B, 5, 1, bytes(8))])) is None


def test_an_image_without_metadata_gets_none(tmp_path):
    for suffix in (".png", ".jpg", ".webp", ".ppm", ".tif"):
        Image.fromarray(COLOURS).save(tmp_path / f"a{suffix}")
        picture = read_picture(tmp_path / f"a{suffix}")
        assert (picture.icc, picture.exif, picture.notices) == (None, None, ())


# ---- TIFF


def test_a_tiffs_tags_go_into_exif(codec, tmp_path):
    texts = {
        0x010E: "a description", 0x010F: "Maker", 0x0110: "Model", 0x0131: "Program", 0x0132: "2026:01:02 03:04:05",
        0x013B: "Artist", 0x013C: "host", 0x8298: "© the Copyright".encode(),
    }  # fmt: skip
    directories = {0x8769: {0x9003: "2025:01:02 03:04:05", 0x829A: 0.5}, 0x8825: {1: "N"}}
    path = tmp_path / "a.tif"
    others = {0x010D: "a document's name", 0x811D: "an unknown tag"}
    Image.fromarray(COLOURS).save(path, tiffinfo=texts | directories | others, dpi=(300, 300))
    picture = read_picture(path)
    assert picture.notices == ("TIFF tags that EXIF does not know: DocumentName, 33053: left out",)
    decoded = codec.decode(codec.encode(picture, lossless=True))
    exif = decoded.getexif()
    for tag, value in texts.items():
        assert exif[tag] == (value.decode("latin-1") if isinstance(value, bytes) else value)
    assert exif.get_ifd(0x8769) == {0x9003: "2025:01:02 03:04:05", 0x829A: 0.5}
    assert exif.get_ifd(0x8825) == {1: "N"}
    assert decoded.info["dpi"] == (300, 300)
    assert not set(exif) & {0x0100, 0x0101, 0x0103, 0x0111, 0x0117}  # how the TIFF was stored
    write_picture(tmp_path / "b.tif", to_picture(decoded))
    with Image.open(tmp_path / "b.tif") as image:
        assert image.getexif().get_ifd(0x8769) == exif.get_ifd(0x8769)
        assert image.getexif()[0x8298].encode("latin-1") == texts[0x8298]
    assert read_picture(tmp_path / "b.tif").exif == picture.exif


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_either_kind_is_carried(big, tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", tiffinfo={0x013B: "Artist"}, big_tiff=big)
    assert b"Artist\0" in read_picture(tmp_path / "a.tif").exif


# ---- colours


def profile_of(space: bytes) -> bytes:
    return SRGB[:16] + space + SRGB[20:]


@pytest.mark.parametrize(
    "mode, space, kept",
    [
        ("RGB", b"RGB ", True),
        ("RGB", b"GRAY", False),
        ("L", b"GRAY", True),
        ("L", b"RGB ", False),
        ("LA", b"RGB ", False),
        ("RGBA", b"RGB ", True),
        ("RGBA", b"GRAY", False),
        ("CMYK", b"CMYK", False),
        ("CMYK", b"RGB ", False),
        ("I;16", b"RGB ", False),
        ("I;16", b"GRAY", True),
        ("1", b"RGB ", False),
        ("P", b"RGB ", True),
    ],
)
def test_a_profile_is_kept_if_it_describes_the_coded_pixels(mode, space, kept):
    image = Image.new(mode, (4, 4)) if mode != "P" else Image.fromarray(COLOURS).quantize(8)
    image.info["icc_profile"] = profile_of(space)
    picture = to_picture(image)
    assert (picture.icc is not None) == kept
    assert any("ICC profile" in notice for notice in picture.notices) == (not kept)


GAMA = struct.pack(">I", 45455)
CHRM = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
WIDE = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


@pytest.mark.parametrize(
    "chunks, words",
    [
        ([], None),
        ([(b"sRGB", b"\0")], None),
        ([(b"gAMA", GAMA)], None),
        ([(b"gAMA", GAMA), (b"cHRM", CHRM)], None),
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))], None),  # sRGB counts before gAMA
        ([(b"cICP", bytes((1, 13, 0, 1)))], None),
        ([(b"cICP", bytes((1, 13, 0, 1))), (b"cHRM", WIDE)], None),  # cICP counts before all
        ([(b"cICP", bytes((9, 16, 0, 1)))], "by its cICP"),
        ([(b"cICP", bytes((12, 13, 0, 1))), (b"sRGB", b"\0")], "by its cICP"),
        ([(b"gAMA", struct.pack(">I", 100000))], "by its gAMA"),
        ([(b"gAMA", struct.pack(">I", 55556))], "by its gAMA"),
        ([(b"cHRM", WIDE)], "by its cHRM"),
        ([(b"gAMA", struct.pack(">I", 55556)), (b"cHRM", WIDE)], "by its gAMA and cHRM"),
    ],
)
def test_colours_that_are_not_srgb_are_kept_by_a_profile_or_said(chunks, words):
    def notices(image: Image.Image, **options) -> tuple[str, ...]:
        with Image.open(io.BytesIO(png_bytes(image, *chunks, **options))) as opened:
            return to_picture(opened).notices

    found = notices(Image.fromarray(COLOURS))
    assert found == () if words is None else len(found) == 1 and words in found[0] and "as sRGB" in found[0]
    gray = notices(Image.fromarray(COLOURS[..., 0]))
    assert gray == () if words in (None, "by its cHRM") else len(gray) == 1
    if words != "by its cICP" and not any(kind == b"sRGB" for kind, _ in chunks):
        assert notices(Image.fromarray(COLOURS), icc_profile=SRGB) == ()


# ---- words


def test_text_that_has_no_place_is_named(tmp_path):
    text = PngImagePlugin.PngInfo()
    for name in ("Title", "Author", "Comment", "a", "b", "c\x07"):
        text.add_text(name, "words")
    Image.fromarray(COLOURS).save(tmp_path / "a.png", pnginfo=text)
    (notice,) = read_picture(tmp_path / "a.png").notices
    assert notice == "its text (Author, Comment, Title, a, b and 1 more): left out"
    for suffix in (".jpg", ".gif"):
        Image.fromarray(COLOURS[..., 0]).save(tmp_path / f"a{suffix}", comment=b"words")
        assert read_picture(tmp_path / f"a{suffix}").notices[-1] == "its comment: left out"
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", 4) + b"\x1c\x02\x50\0"
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", extra=b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc)
    assert read_picture(tmp_path / "a.jpg").notices == ("its IPTC data: left out",)


# ---- limits of Pillow's


@pytest.mark.parametrize(
    "name, limit, options",
    [
        ("MAX_TEXT_CHUNK", 1000, {"text": "words " * 2000}),
        ("MAX_TEXT_CHUNK", 1000, {"icc_profile": bytes(3000)}),
        ("MAX_TEXT_MEMORY", 1000, {"text": "words " * 2000}),
    ],
)
def test_limits_of_pillows_are_told_from_damage(name, limit, options, tmp_path, monkeypatch):
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", options.pop("text", "none"), zip=True)
    Image.fromarray(COLOURS).save(tmp_path / "a.png", pnginfo=text, **options)
    with monkeypatch.context() as patch:
        patch.setattr(PngImagePlugin, name, limit)
        with pytest.raises(LimitError) as caught:
            read_picture(tmp_path / "a.png")
    for words in ("a.png: ", f"Pillow's limit of {limit} bytes", f"PIL.PngImagePlugin.{name} higher"):
        assert words in str(caught.value)
    assert read_picture(tmp_path / "a.png").width == 7  # with the limit higher, as the message says


@pytest.mark.filterwarnings("error")
def test_pillows_limit_of_pixels_does_not_stand_in_the_way_of_our_own(codec, monkeypatch):
    """Of a file's alpha and lossless tiles, whose size has passed the codec's limits."""
    pixels = RNG.integers(0, 256, (40, 50, 4), dtype=np.uint8)
    for data in (codec.encode(pixels), codec.encode(pixels, lossless=True)):
        expected = codec.decode(data, out="numpy")
        for limit in (1, 1999):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            assert np.array_equal(codec.decode(data, out="numpy"), expected)
            codec.verify(data)
            assert limit == Image.MAX_IMAGE_PIXELS


def test_pillows_limit_of_pixels_is_named_where_it_holds(monkeypatch):
    monkeypatch.setattr(images, "STRIP_PIXELS", 28)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)  # Pillow asks it of what is cut out, too
    with pytest.raises(LimitError, match=r"PIL\.Image\.MAX_IMAGE_PIXELS higher"):
        to_picture(Image.fromarray(COLOURS))
