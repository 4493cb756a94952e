"""Metadata that goes with pixels: EXIF, XMP, ICC profiles, the resolution.

A picture's pixels are upright, so whatever said how to turn them is set to "upright" here. EXIF is changed in place or
by a new first directory behind it, and is never written anew: maker notes hold absolute offsets into it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, Protocol

from PIL import ExifTags, Image, TiffTags

EXIF_PREFIX = b"Exif\0\0"
Resolution = tuple[float, float]  # dots per inch, across and down

_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL = 1, 2, 3, 4, 5  # types of EXIF's values
_DOTS_PER_INCH, _DOTS_PER_CM = 2, 3  # values of ResolutionUnit
_CM_PER_INCH = 2.54
_FINEST = 10_000  # parts of a dot per inch that are kept: PNG counts in steps of 254
_ROUNDED = 0.005  # JPEG and PNG round their resolutions; those that differ by less are one

_TIFF_PREFIX = re.compile(rb"xmlns:([\w.-]{1,30})\s{0,9}=\s{0,9}[\"']http://ns\.adobe\.com/tiff/1\.0/[\"']")
_MOST_PREFIXES = 9  # names for the one namespace that XMP may give it

# The text of a TIFF's first directory that is about the image, and means the same in EXIF.
_TEXT_TAGS = tuple(
    ExifTags.Base[name]
    for name in ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "HostComputer", "Copyright")
)
_OTHER_TAGS = tuple(
    ExifTags.Base[name]
    for name in ("XPTitle", "XPComment", "XPAuthor", "XPKeywords", "XPSubject", "Rating", "RatingPercent")
)
_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_RESOLUTION_TAGS = (ExifTags.Base.XResolution, ExifTags.Base.YResolution, ExifTags.Base.ResolutionUnit)
# How a TIFF stores its pixels, which says nothing of what they show; the last two are the profile and XMP.
# fmt: off
_STORAGE_TAGS = frozenset({
    254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291,
    292, 293, 296, 297, 317, 320, 321, 322, 323, 324, 325, 326, 327, 328, 330, 332, 334, 336, 338, 339, 340, 341, 347,
    512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 34675, 700,
})
# fmt: on


# Where Pillow keeps what may give an orientation.
_SOURCES = {"exif": ("exif", "Raw profile type exif"), "xmp": ("xmp", "XML:com.adobe.xmp")}

INFO_NAMES = ("icc_profile", "exif", "xmp", "dpi")  # in Pillow's `info` and among its options of `save`


class Carrier(Protocol):
    """A carrier of metadata: a picture, a header."""

    @property
    def icc(self) -> bytes | None: ...
    @property
    def exif(self) -> bytes | None: ...
    @property
    def xmp(self) -> bytes | None: ...


def as_info(source: Carrier) -> dict[str, Any]:
    """Metadata under Pillow's names; what is not there is left out."""
    exif = source.exif
    found = {
        "icc_profile": source.icc,
        "exif": exif and EXIF_PREFIX + exif,
        "xmp": source.xmp,
        "dpi": exif and exif_resolution(exif),
    }
    return {name: value for name, value in found.items() if value}


# ---- EXIF


def bare_exif(exif: bytes) -> bytes:
    """EXIF from its TIFF header on: some writers put JPEG's "Exif\\0\\0" before it, some twice."""
    while exif.startswith(EXIF_PREFIX):
        exif = exif.removeprefix(EXIF_PREFIX)
    return exif


def is_readable(exif: bytes) -> bool:
    """Whether there is a first directory."""
    return _first_directory(exif) is not None


def upright_exif(exif: bytes) -> bytes:
    """EXIF whose first directory says "upright" wherever it gives an orientation, of whatever type and however often.

    The thumbnail's directory is left alone: its tag is about the thumbnail, which nobody has turned.
    """
    found = _first_directory(exif)
    if found is None:
        return exif
    order, entries, _ = found
    out = bytearray(exif)
    for at in entries:
        if struct.unpack_from(order + "H", exif, at)[0] == ExifTags.Base.Orientation:
            struct.pack_into(order + "HHIHH", out, at, ExifTags.Base.Orientation, _SHORT, 1, 1, 0)
    return bytes(out)


def exif_resolution(exif: bytes) -> Resolution | None:
    """The resolution that EXIF gives, or None if it gives none in inches or centimetres."""
    found = _first_directory(exif)
    if found is None:
        return None
    order, entries, _ = found
    values: dict[int, float] = {}
    for at in entries:
        tag, kind, count, offset = struct.unpack_from(order + "HHII", exif, at)
        if tag in values or tag not in _RESOLUTION_TAGS or count != 1:
            continue
        if kind == _SHORT:
            values[tag] = struct.unpack_from(order + "H", exif, at + 8)[0]
        elif kind == _RATIONAL and offset + 8 <= len(exif):
            over, under = struct.unpack_from(order + "II", exif, offset)
            values[tag] = over / under if under else math.nan
    x, y, unit = (values.get(tag, default) for tag, default in zip(_RESOLUTION_TAGS, (0, 0, 2), strict=True))
    scale = {_DOTS_PER_INCH: 1.0, _DOTS_PER_CM: _CM_PER_INCH}.get(int(unit) if math.isfinite(unit) else 0)
    return _checked_resolution((x * scale, y * scale)) if scale else None


def with_resolution(exif: bytes | None, resolution: Resolution) -> bytes | None:
    """EXIF that gives this resolution: as it is, if it does so already but for rounding; else with new tags.

    A resolution that EXIF cannot hold changes nothing.
    """
    now = exif_resolution(exif) if exif else None
    if now and all(math.isclose(a, b, rel_tol=_ROUNDED) for a, b in zip(now, resolution, strict=True)):
        return exif
    parts = [Fraction(value).limit_denominator(_FINEST) for value in resolution]
    if not all(0 < part.numerator < 1 << 32 for part in parts):
        return exif
    order = _order(exif)
    entries: dict[int, tuple[int, int, bytes]] = {
        tag: (_RATIONAL, 1, struct.pack(order + "II", part.numerator, part.denominator))
        for tag, part in zip(_RESOLUTION_TAGS, parts, strict=False)
    }
    entries[ExifTags.Base.ResolutionUnit] = (_SHORT, 1, struct.pack(order + "H", _DOTS_PER_INCH))
    return _with_entries(exif, entries)


def _checked_resolution(value: Any) -> Resolution | None:
    try:
        x, y = (float(part) for part in value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def _order(exif: bytes | None) -> str:
    return ">" if exif and exif.startswith(b"MM") else "<"


def _first_directory(exif: bytes) -> tuple[str, list[int], int] | None:
    """The byte order, where each entry of the first directory begins, and where the directory after it is (0: none).

    None if there is no such directory. Of one that is cut short, as many entries as are whole.
    """
    if len(exif) < 8 or exif[:2] not in (b"II", b"MM") or exif[2:4] not in (b"*\0", b"\0*"):
        return None
    order = _order(exif)
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, start)
    end = start + 2 + 12 * count
    entries = [at for at in range(start + 2, end, 12) if at + 12 <= len(exif)]
    following = struct.unpack_from(order + "I", exif, end)[0] if end + 4 <= len(exif) else 0
    return order, entries, following


def _with_entries(exif: bytes | None, entries: dict[int, tuple[int, int, bytes]]) -> bytes:
    """EXIF with these tags (type, count, value in its byte order) in its first directory, which is written anew behind
    all else, so that nothing that something points to moves. None: with these alone."""
    found = _first_directory(exif) if exif else None
    if exif is None or found is None:
        exif, found = b"II*\0" + bytes(4), ("<", [], 0)
    order, before, following = found
    records = []  # (tag, type, count, value or offset) of those that are kept
    for at in before:
        record = struct.unpack_from(order + "HHI4s", exif, at)
        if record[0] not in entries:
            records.append(record)
    if len(records) + len(entries) > 0xFFFF:
        return exif  # full, and no camera's
    start = len(exif) + len(exif) % 2
    data_at, data = start + 2 + 12 * (len(records) + len(entries)) + 4, bytearray()
    places: dict[bytes, int] = {}  # equal values are stored once
    for tag, (kind, count, value) in entries.items():
        if len(value) > 4:
            if value not in places:
                places[value] = data_at + len(data)
                data += value + bytes(len(value) % 2)
            value = struct.pack(order + "I", places[value])
        records.append((tag, kind, count, value.ljust(4, b"\0")))
    records.sort(key=lambda record: record[0])
    out = bytearray(exif.ljust(start, b"\0"))
    struct.pack_into(order + "I", out, 4, start)
    out += struct.pack(order + "H", len(records))
    for record in records:
        out += struct.pack(order + "HHI4s", *record)
    return bytes(out + struct.pack(order + "I", following) + data)


# ---- XMP


def upright_xmp(xmp: bytes) -> bytes:
    """XMP that says "upright" wherever it gives an orientation, as an attribute or an element; its length stays."""
    prefixes = {b"tiff", *_TIFF_PREFIX.findall(xmp)[:_MOST_PREFIXES]}
    pattern = rb"((?<![/\w.-])(?:%s):Orientation(?:\s{0,9}=\s{0,9}[\"']|(?:\s[^<>]{0,99})?(?<!/)>)\s{0,9})(\d+)"
    pattern %= b"|".join(re.escape(prefix) for prefix in sorted(prefixes))
    return re.sub(pattern, lambda found: found[1] + b"1".rjust(len(found[2]), b"0"), xmp)


# ---- of an image of Pillow's, or given instead of its own


def given_metadata(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of a `save`, those that count instead of an image's own metadata; a kind that is None or empty is
    left out."""
    given = {name: options[name] or None for name in INFO_NAMES if name in options}
    if isinstance(exif := given.get("exif"), Image.Exif):
        given["exif"] = exif.tobytes()
    if "exif" in given and given["exif"] is None:
        given.setdefault("dpi", None)  # for which EXIF would be made
    return given


def orientation_of(image: Image.Image, given: Mapping[str, Any]) -> Any:
    """The orientation that Pillow obeys, from EXIF or XMP: 1 to 8 if it means something, of any numeric type."""
    if "exif" in given or "xmp" in given:
        info = {name: image.info[name] for names in _SOURCES.values() for name in names if name in image.info}
        for name in set(given) & set(_SOURCES):
            info = {key: value for key, value in info.items() if key not in _SOURCES[name]}
            info |= {name: given[name]} if given[name] else {}
        image = Image.new("1", (1, 1))
        image.info.update(info)
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF may raise anything; Pillow shows such an image as it lies
        return 1


def exif_of(image: Image.Image, given: Mapping[str, Any], notices: list[str]) -> bytes | None:
    """The EXIF of a loaded image, upright; of a TIFF, those of its tags that EXIF knows. Adds what is lost to
    `notices`."""
    found = given.get("exif", image.info.get("exif"))
    if "exif" in given and not found:
        return None
    if not found and isinstance(image.info.get("Raw profile type exif"), str):  # a PNG of ImageMagick's
        try:
            found = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        except ValueError:
            found = b"not hexadecimal"
    if found and isinstance(found, bytes):
        exif = bare_exif(found)
        if not is_readable(exif):
            notices.append("its EXIF cannot be read: left out")
            return None
        return upright_exif(exif)
    try:
        tags = image.getexif()
        if image.format == "TIFF":
            return _exif_of_tiff(tags, notices)
        if image.format is None or not set(tags) - {ExifTags.Base.Orientation}:
            return None
        return upright_exif(bare_exif(tags.tobytes()))
    except Exception as error:  # Pillow reads what it can, and may raise anything on the rest
        notices.append(f"its EXIF cannot be read ({' '.join(str(error).split()) or type(error).__name__}): left out")
        return None


def xmp_of(image: Image.Image, given: Mapping[str, Any], notices: list[str]) -> bytes | None:
    """The XMP of a loaded image, upright. Adds what is lost to `notices`."""
    found = given["xmp"] if "xmp" in given else image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if isinstance(found, str):
        found = found.encode()
    if not isinstance(found, bytes) or not found:
        return None
    if image.format in ("JPEG", "MPO") and b":HasExtendedXMP" in found:
        notices.append("its extended XMP: left out")
    return upright_xmp(found)


def _exif_of_tiff(tags: Image.Exif, notices: list[str]) -> bytes | None:
    base = Image.Exif()
    base.endian = "<"
    for directory in _DIRECTORIES:
        if found := tags.get_ifd(directory):
            base[directory] = {tag: _text_as_stored(value) for tag, value in found.items()}
    entries: dict[int, tuple[int, int, bytes]] = {}
    for tag in (*_TEXT_TAGS, *_OTHER_TAGS):
        value = _as_stored(tags.get(tag))
        if isinstance(value, int) and 0 <= value < 1 << 32:
            entries[tag] = (_LONG, 1, struct.pack("<I", value))
        elif isinstance(value, bytes) and value:
            text = tag in _TEXT_TAGS
            entries[tag] = (_ASCII if text else _BYTE, len(value) + text, value + bytes(text))
    left_out = set(tags) - set(entries) - set(_DIRECTORIES) - set(_RESOLUTION_TAGS) - _STORAGE_TAGS
    if left_out:
        notices.append(f"TIFF tags that EXIF does not know: {_listed(map(_name, sorted(left_out)))}: left out")
    exif = bare_exif(base.tobytes()) if base else None
    return _with_entries(exif, entries) if entries else exif


def _as_stored(value: Any) -> Any:
    """Text as the bytes that it is stored in, which Pillow decodes as Latin-1, whatever they are."""
    return value.encode("latin-1", "replace") if isinstance(value, str) else value


def _text_as_stored(value: Any) -> Any:
    """The same in a directory whose tags' types Pillow does not know: it tells text by its type there, and would lose
    what is not ASCII."""
    return value if isinstance(value, str) and value.isascii() else _as_stored(value)


def _name(tag: int) -> str:
    name = TiffTags.lookup(tag).name
    return f"{tag}" if name == "unknown" else name


def tiff_tags(exif: bytes) -> dict[int, Any]:
    """EXIF as the tags of a TIFF that Pillow writes, text as the bytes that it is stored in."""
    tags = Image.Exif()
    tags.load(exif)
    out = {tag: _as_stored(tags[tag]) for tag in tags if tag not in _DIRECTORIES}
    for directory in _DIRECTORIES:
        if found := tags.get_ifd(directory):
            out[directory] = {tag: _text_as_stored(value) for tag, value in found.items()}
    return out


def resolution_of(image: Image.Image, given: Mapping[str, Any]) -> Resolution | None:
    """The resolution that an image's file gives outside EXIF."""
    if "dpi" in given:
        return _checked_resolution(given["dpi"])
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        return None  # Pillow takes it from EXIF, or makes it up
    if image.format == "TIFF" and ExifTags.Base.XResolution not in getattr(image, "tag_v2", ()):
        return None  # likewise
    return _checked_resolution(image.info.get("dpi"))


def icc_of(image: Image.Image, given: Mapping[str, Any], gray: bool, notices: list[str]) -> bytes | None:
    """The ICC profile of a loaded image, if it describes the pixels that are coded, gray or RGB."""
    icc = given.get("icc_profile", image.info.get("icc_profile"))
    if not isinstance(icc, bytes) or not icc:
        return None
    space = icc[16:20].decode("latin-1").strip()
    if image.mode in ("CMYK", "LAB") or space != ("GRAY" if gray else "RGB"):
        notices.append(f"its ICC profile ({space or 'unknown'} data) does not describe the coded pixels: left out")
        return None
    return icc


def within_limit(piece: bytes | None, name: str, limit: int, notices: list[str]) -> bytes | None:
    """A piece of metadata that readers accept: None, and a notice, if it has more bytes than `limit`."""
    if piece is None or len(piece) <= limit:
        return piece
    notices.append(f"its {name} of {len(piece)} bytes is more than the {limit} that readers accept: left out")
    return None


def note_texts(image: Image.Image, notices: list[str]) -> None:
    """Adds a notice of the texts in a loaded image's file, for which a .fic file has no place."""
    if image.format == "PNG":
        texts = set(getattr(image, "text", {})) - {"XML:com.adobe.xmp", "Raw profile type exif"}
        if texts:
            notices.append(f"its text ({_listed(sorted(texts))}): left out")
    elif image.format in ("JPEG", "MPO", "GIF") and image.info.get("comment"):
        notices.append("its comment: left out")
    if image.format in ("JPEG", "MPO") and 0x0404 in image.info.get("photoshop", ()):
        notices.append("its IPTC data: left out")


def _listed(names: Iterable[str]) -> str:
    """The first five of several names, and how many more there are."""
    names = [re.sub(r"[^ -~\xa1-\xff]", "?", name) for name in names]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
