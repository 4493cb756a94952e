"""Images as the codec codes them (`Picture`), from and to Pillow, NumPy, PyTorch and files.

A picture is 8 bits deep, gray or RGB, upright, with its alpha apart. Whatever else comes in is converted once, here,
and the picture's `notices` say what that cost. Pixels are moved in strips, so that a 100-megapixel image is never held
more often than once as Pillow's and once as ours.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from . import metadata, png
from .container import DEFAULT_LIMITS, MAGIC
from .errors import CorruptStreamError, FastcodecError, ImageError, LimitError
from .files import check_regular, replacing

if TYPE_CHECKING:
    import torch

ImageLike: TypeAlias = "Image.Image | np.ndarray | torch.Tensor | Picture"
Output = Literal["pil", "numpy", "tensor", "picture"]

MAX_PIXELS = DEFAULT_LIMITS.max_pixels  # one limit for the images that come in and the files that come out
STRIP_PIXELS = 1 << 22

# Formats that Pillow hands to an interpreter (Ghostscript, the system's metafile player) instead of decoding them.
_PROGRAMS = {"EPS", "WMF"}
# Formats that Pillow does not save an image in as it is: pages, and icons, which it scales.
_NO_PICTURES = {"EPS", "PDF", "ICO", "ICNS"}
# Formats without alpha, and those whose alpha Pillow drops, or rounds to one bit, without a word.
_NO_ALPHA = {"JPEG", "MPO", "BMP", "DIB", "PPM", "GIF", "PCX", "MSP", "XBM", "PALM", "BLP"}
# Suffixes of the usual formats that keep it.
ALPHA_SUFFIXES = (".png", ".webp", ".avif", ".tif", ".jp2", ".tga")
_TURNING = (5, 6, 7, 8)  # orientations whose rows are stored as columns
# Formats that Pillow writes a profile, EXIF and XMP in, and the bytes of one segment of a JPEG.
_KEEP_METADATA = {"PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF"}
_JPEG_LIMITS = {"exif": 65533, "xmp": 65533 - 29}
_TIFF_XMP = 700
# Saved without a visible loss where the format allows it: these are decoded images, not originals to shrink again.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 3},  # measured on decoded photographs: level 6 takes twice the time, for 2 % at best
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "quality": 20, "method": 2},  # higher settings: thrice the time for 3 %
    "AVIF": {"quality": 90},
    "TIFF": {"compression": "tiff_lzw"},
    "JPEG2000": {"irreversible": False},
}


@dataclass(frozen=True)
class Picture:
    """An image as it is coded. Its arrays may share memory with what it was made of, and are not written to."""

    pixels: np.ndarray  # uint8 [H, W, 3], or [H, W] for grayscale; C-contiguous
    alpha: np.ndarray | None = None  # uint8 [H, W], C-contiguous; kept losslessly
    icc: bytes | None = None
    exif: bytes | None = None  # a TIFF structure without the "Exif\0\0" before it; its orientation is already applied
    xmp: bytes | None = None  # a packet in UTF-8; likewise
    notices: tuple[str, ...] = ()  # the conversions made on the way in, for the user

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or (len(shape) != 2 and (len(shape) != 3 or shape[2] != 3)):
            raise TypeError(f"Picture.pixels: uint8 [H, W, 3] or [H, W] expected, not {_describe(self.pixels)}")
        if 0 in shape:
            raise ImageError(f"the image is empty: {shape[1]}x{shape[0]}")
        if self.alpha is not None and (self.alpha.dtype != np.uint8 or self.alpha.shape != shape[:2]):
            raise TypeError(f"Picture.alpha: uint8 {list(shape[:2])} expected, not {_describe(self.alpha)}")

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[0]

    @property
    def mode(self) -> Literal["L", "LA", "RGB", "RGBA"]:
        """The name of its channels, as in Pillow."""
        return _mode(self.pixels.ndim == 2, self.alpha is not None)


def _mode(gray: bool, alpha: bool) -> Literal["L", "LA", "RGB", "RGBA"]:
    if gray:
        return "LA" if alpha else "L"
    return "RGBA" if alpha else "RGB"


def to_picture(image: ImageLike, given: Mapping[str, Any] | None = None) -> Picture:
    """A picture of a Pillow image, of a uint8 array [H, W] or [H, W, C], or of a uint8 tensor [H, W] or [C, H, W].

    given: what counts instead of a Pillow image's own metadata, from `metadata.given_metadata`. C is 1 (gray), 2 (gray,
    alpha), 3 (RGB) or 4 (RGBA). TypeError for another type or dtype, ImageError for another shape and for a Pillow
    image that cannot be decoded or converted, LimitError where a limit of Pillow's is in the way.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, Image.Image):
        return _from_pil(image, given or {})
    if isinstance(image, np.ndarray):
        return _from_array(image, image.shape, "an array", "[H, W, C]")
    torch = sys.modules.get("torch")  # not imported for those who pass no tensor
    if torch is not None and isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8:
            raise TypeError(f"a uint8 tensor expected, not {_describe(image)}: scale to 0..255 and convert it first")
        shape = tuple(image.shape)
        array = image.detach().cpu().numpy()
        return _from_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, shape, "a tensor", "[C, H, W]")
    raise TypeError(f"a Pillow image, a NumPy array or a PyTorch tensor expected, not {type(image).__name__}")


def from_picture(picture: Picture, out: Output = "pil") -> Any:
    """The picture as a Pillow image (L, LA, RGB, RGBA; ICC profile, EXIF, XMP, resolution in its `info`), a uint8 array
    ([H, W] for gray, else [H, W, C]), a uint8 tensor [C, H, W], or as it is. Arrays and tensors of opaque pictures
    share their memory where they can."""
    if out == "picture":
        return picture
    pixels, alpha = picture.pixels, picture.alpha
    if out == "pil":
        image = Image.fromarray(pixels)
        if image.readonly:  # Pillow shares the array's memory and would refuse to write there
            image = image.copy()
        if alpha is not None:
            image.putalpha(Image.fromarray(alpha))
        image.info.update(metadata.as_info(picture))
        return image
    if out not in ("numpy", "tensor"):
        raise ValueError(f'out: "pil", "numpy", "tensor" or "picture" expected, not {out!r}')
    if alpha is not None:
        channels = [pixels[..., None] if pixels.ndim == 2 else pixels, alpha[..., None]]
        pixels = np.concatenate(channels, axis=2)
    if out == "numpy":
        return pixels
    import torch

    planes = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(planes if planes.flags.writeable else planes.copy())


def as_coded(pixels: np.ndarray, grayscale: bool) -> np.ndarray:
    """Decoded pixels, uint8 [H, W, 3], as the `Picture` had them: [H, W], their rounded mean, if it was gray."""
    return ((pixels.astype(np.uint16).sum(2) + 1) // 3).astype(np.uint8) if grayscale else pixels


def read_picture(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS, stream: IO[bytes] | None = None) -> Picture:
    """The picture of an image file; of an animation, its first frame.

    stream: a seekable binary file that is read instead; `path` is its name in errors then.

    ImageError names the file and the cause: missing, a directory, not an image, truncated. LimitError if it has more
    than `max_pixels`, checked before it is decoded; this limit stands in for Pillow's own.
    """
    with _opened(path, max_pixels, stream) as image:
        return _from_pil(image, {})


def read_size(
    path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS, stream: IO[bytes] | None = None
) -> tuple[int, int]:
    """Width and height of an image file as its header has them, before any orientation; raises what `read_picture`
    raises, but decodes nothing."""
    with _opened(path, max_pixels, stream) as image:
        return image.size


@contextlib.contextmanager
def _opened(path: str | os.PathLike, max_pixels: int, source: IO[bytes] | None) -> Iterator[Image.Image]:
    """An image file of acceptable size. Whatever is raised within the block gets the file's name."""
    head = b""
    try:
        if source is None:
            check_regular(path)
        opened = open(path, "rb") if source is None else contextlib.nullcontext(source)  # noqa: SIM115 (just below)
        with pillow_limit(max_pixels), opened as stream:
            head = stream.read(4)
            stream.seek(0)
            if not head:
                raise ImageError("the file is empty")
            with Image.open(stream) as image:
                if image.format in _PROGRAMS:
                    raise ImageError(f"{image.format} is a page description, not an image: rasterise it first")
                if image.width * image.height > max_pixels:
                    raise LimitError(
                        f"{image.width} x {image.height} pixels exceed the limit of {max_pixels}; "
                        "raise the limit if you trust the file"
                    )
                yield image
    except FastcodecError as error:
        raise type(error)(f"{path}: {error}") from (error.__cause__ or error)
    except Image.DecompressionBombError as error:
        raise LimitError(
            f"{path}: more than the limit of {max_pixels} pixels ({error}); raise the limit if you trust the file"
        ) from error
    except UnidentifiedImageError as error:
        what = "a .fic file already" if head == MAGIC else "not an image of a known format"
        raise ImageError(f"{path}: {what}") from error
    except Exception as error:  # a plugin of Pillow may raise anything on hostile data
        named = _pillow_error(error)
        raise type(named)(f"{path}: {named}") from error


def output_format(path: str | os.PathLike) -> str:
    """Pillow's name of the format that a file of this suffix is written in; ImageError if there is none."""
    suffix = Path(path).suffix.lower()
    name = Image.registered_extensions().get(suffix)
    if name is None or name not in Image.SAVE or name in _NO_PICTURES:
        what = f"the suffix {suffix!r} is of no format" if suffix else "the name has no suffix, so no format"
        raise ImageError(f"{path}: {what} that images are written in (.png, .jpg, .webp, .tif, .bmp, .ppm ...)")
    return name


def keeps_alpha(path: str | os.PathLike) -> bool:
    """Whether the format of a file of this suffix has alpha. Raises what `output_format` raises."""
    return output_format(path) not in _NO_ALPHA


def write_picture(path: str | os.PathLike, picture: Picture, *, stream: IO[bytes] | None = None) -> tuple[str, ...]:
    """Write an image file in the format of its suffix, with the ICC profile, EXIF and XMP where the format has them;
    returns, in words for the user, what of them was left out.

    stream: a seekable binary file that is written to instead; `path` tells the format
    then, and is its name in errors.

    Nobody sees half a file: it is written beside its place and then moved there. ImageError names the file and the
    cause; an OSError of the disk (full, permission) stays what it is, with the file's name.
    """
    name = output_format(path)
    if picture.alpha is not None and not keeps_alpha(path):
        raise ImageError(f"{path}: cannot write mode {picture.mode} as {name}: choose PNG or WebP")
    image = from_picture(picture, "pil")
    given, notices = _fitting_metadata(name, picture)
    options = _SAVE_OPTIONS.get(name, {}) | given
    try:
        with contextlib.nullcontext(stream) if stream is not None else replacing(path) as output:
            image.save(_WithoutDescriptor(output), format=name, **options)
    except OSError as error:
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        # So Pillow says that a format lacks a mode: "cannot write mode RGBA as JPEG".
        raise ImageError(f"{path}: {error}" + (": choose PNG or WebP" if "mode" in str(error) else "")) from error
    except (ValueError, KeyError, struct.error, TypeError, RuntimeError) as error:
        raise ImageError(f"{path}: {name} cannot hold this image: {error}") from error
    return notices


def _fitting_metadata(name: str, picture: Picture) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A picture's metadata as options of Pillow's `save` in a format, and what the format does not hold, in words."""
    given, notices = metadata.as_info(picture), []
    for kind, word in (("icc_profile", "ICC profile"), ("exif", "EXIF"), ("xmp", "XMP")):
        if kind not in given:
            continue
        if name not in _KEEP_METADATA:
            notices.append(f"{name} has no place for the {word}: left out")
        elif name in ("JPEG", "MPO") and len(given[kind]) > _JPEG_LIMITS.get(kind, math.inf):
            notices.append(f"the {word} of {len(given[kind])} bytes is more than a JPEG holds: left out")
        else:
            continue
        del given[kind]
    exif, xmp = given.get("exif"), given.get("xmp")
    if name == "PNG" and xmp:
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", given.pop("xmp"))
        given["pnginfo"] = text
    if name == "TIFF" and (exif or xmp):
        tags = metadata.tiff_tags(exif) if exif else {}
        # Libtiff, which compresses, takes none of EXIF's other directories, and Pillow gives it all text as ASCII.
        if any(
            isinstance(value, dict) or (isinstance(value, bytes) and not value.isascii()) for value in tags.values()
        ):
            given["compression"] = "raw"
        given = {key: value for key, value in given.items() if key not in ("exif", "xmp")}
        given["tiffinfo"] = tags | ({_TIFF_XMP: xmp} if xmp else {})
    return given, tuple(notices)


class _WithoutDescriptor:
    """A binary file as Pillow may use it. Given a descriptor, Pillow and libtiff would write to it themselves, overlook
    a short write and lose the cause of a failed one: a full disk."""

    def __init__(self, stream: IO[bytes]):
        self.write, self.seek, self.tell, self.flush = stream.write, stream.seek, stream.tell, stream.flush
        self.read = stream.read


# ---- from arrays


def _from_array(array: np.ndarray, shape: tuple[int, ...], what: str, layout: str) -> Picture:
    """`array` is [H, W] or [H, W, C]; `shape`, `what` and `layout` are the caller's, for the message."""
    if array.dtype != np.uint8:
        raise TypeError(f"a uint8 array expected, not {_describe(array)}: scale to 0..255 and convert it first")
    if array.ndim == 4:
        raise ImageError(f"{what} of shape {list(shape)} is a batch: pass its images one by one, or to encode_batch")
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 1 <= array.shape[2] <= 4):
        hint = ""
        if len(shape) == 3:
            channels_elsewhere = shape[0] if what == "an array" else shape[2]
            if 1 <= channels_elsewhere <= 4:
                hint = "; its channels seem to stand " + ("first" if what == "an array" else "last")
        raise ImageError(f"{what} of shape {list(shape)}: [H, W] or {layout} with 1 to 4 channels expected{hint}")
    if 0 in array.shape:
        raise ImageError(f"{what} of shape {list(shape)} has no pixels")
    if array.ndim == 2:
        return Picture(np.ascontiguousarray(array))
    channels = array.shape[2]
    pixels = np.ascontiguousarray(array[..., 0] if channels <= 2 else array[..., :3])
    return Picture(pixels, np.ascontiguousarray(array[..., -1]) if channels in (2, 4) else None)


def _describe(array: Any) -> str:
    return f"{str(array.dtype).removeprefix('torch.')} {list(array.shape)}"


# ---- from Pillow


def _from_pil(image: Image.Image, given: Mapping[str, Any]) -> Picture:
    notices = []
    if ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I"):
        notices.append("16-bit input reduced to 8 bits")
    gray_tile = "LA;16B" in str(getattr(image, "tile", ""))  # which Pillow expands to RGBA
    try:
        if getattr(image, "is_animated", False):
            notices.append(f"of several frames only the {'first' if image.tell() == 0 else 'current'} one is coded")
        # Pillow turns a TIFF as it loads it, and its resolution does not turn with it.
        turned = image.format == "TIFF" and metadata.orientation_of(image, {}) in _TURNING
        ahead = png.read_ahead(image, max(1, STRIP_PIXELS // max(1, image.width)))
        image.load()
        if ahead.level is not None:
            image = _with_transparency(image, ahead.level)
        return _convert(image, given, notices, gray_tile, ahead, turned)
    except FastcodecError:
        raise
    except Exception as error:  # a plugin of Pillow may raise anything on hostile data
        raise _pillow_error(error) from error


def _with_transparency(image: Image.Image, level: int) -> Image.Image:
    if image.info.get("transparency") == level:
        return image
    other = image.copy()
    other.format, other.info["transparency"] = image.format, level
    return other


def _convert(
    image: Image.Image, given: Mapping[str, Any], notices: list[str], gray_tile: bool, ahead: png.Ahead, turned: bool
) -> Picture:
    """The picture of a loaded image. turned: Pillow has turned it on its side already."""
    width, height = image.size
    if width * height == 0:
        raise ImageError(f"the image is empty: {width}x{height}")
    orientation = metadata.orientation_of(image, given)
    transposed = orientation in _TURNING
    shape = (width, height) if transposed else (height, width)

    mode = _target_mode(image, notices, gray_tile)
    pixels = np.empty(shape + ((3,) if mode.startswith("RGB") else ()), np.uint8)
    alpha = np.empty(shape, np.uint8) if mode.endswith("A") else None
    # The outputs seen in the input's orientation, so that rows are turned as they are written.
    pixels_in = _unturned(pixels, orientation)
    alpha_in = None if alpha is None else _unturned(alpha, orientation)

    colour = ahead.colour  # the transparent one, of a picture with alpha
    if colour is None and image.mode == "RGB" and max(png.transparent_colour(image), default=0) > 255:
        colour = tuple(value >> 8 for value in png.transparent_colour(image))
        notices.append("its transparent colour has 16 bits, its pixels had 8 left: colours near it are transparent too")
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        if image.mode[0] in "IF":
            values = np.asarray(strip)
            pixels_in[top:bottom] = _to_8_bits(values)
            if alpha_in is not None:
                alpha_in[top:bottom] = np.where(values == image.info["transparency"], 0, 255)
            continue
        if colour is not None and alpha_in is not None:
            pixels_in[top:bottom] = array = np.asarray(strip)
            transparent = (array == colour).all(2)
            if ahead.low_halves is not None:
                transparent &= ahead.low_halves[top:bottom]
            alpha_in[top:bottom] = np.where(transparent, 0, 255)
            continue
        array = np.asarray(strip if strip.mode == mode else strip.convert(mode))
        if alpha_in is None:
            pixels_in[top:bottom] = array
        else:
            pixels_in[top:bottom] = array[..., 0] if mode == "LA" else array[..., :3]
            alpha_in[top:bottom] = array[..., -1]

    gray = pixels.ndim == 2
    icc = metadata.icc_of(image, given, gray, notices)
    exif = metadata.exif_of(image, given, notices)
    resolution = metadata.resolution_of(image, given) or (metadata.exif_resolution(exif) if exif else None)
    if resolution:
        exif = metadata.with_resolution(exif, resolution[::-1] if transposed or turned else resolution)
    xmp = metadata.xmp_of(image, given, notices)
    png.note_colours(image, ahead, gray, notices)
    metadata.note_texts(image, notices)
    icc, exif, xmp = (
        metadata.within_limit(piece, name, DEFAULT_LIMITS.max_metadata, notices)
        for piece, name in ((icc, "ICC profile"), (exif, "EXIF"), (xmp, "XMP"))
    )
    return Picture(pixels, alpha, icc, exif, xmp, tuple(notices))


def _extrema(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest value of an image of one channel."""
    pair: Any = image.getextrema()  # one for each channel, where there are several
    return pair


def _target_mode(image: Image.Image, notices: list[str], gray_tile: bool) -> Literal["L", "LA", "RGB", "RGBA"]:
    """The mode that `image` is coded in; adds the notices of its conversion."""
    mode, see_through = image.mode, image.has_transparency_data
    if mode in ("L", "LA", "La") or (mode == "RGBA" and gray_tile):
        return _mode(True, see_through)
    if mode in ("RGB", "RGBA", "RGBa", "RGBX"):
        return _mode(False, see_through)
    if mode == "1":
        notices.append("bilevel input coded as grayscale")
        return _mode(True, see_through)
    if mode in ("P", "PA"):
        gray = _palette_is_gray(image)
        notices.append(f"palette input coded as {'grayscale' if gray else 'RGB'}")
        return _mode(gray, see_through)
    if mode.startswith("I;16"):
        notices.append("16-bit input reduced to 8 bits")
        return "LA" if isinstance(image.info.get("transparency"), int) else "L"
    if mode == "I":
        low, high = _extrema(image)
        if low < 0 or high > 0xFFFF:
            raise ImageError(f"32-bit integers in {low}..{high}: what is white is not said; scale them to 8 or 16 bits")
        notices.append("32-bit integer input taken as 16-bit and reduced to 8 bits")
        return "L"
    if mode == "F":
        low, high = _extrema(image)
        if not (0 <= low <= high <= 1):
            raise ImageError(f"floating-point values in {low:g}..{high:g}: only 0 (black) to 1 (white) is understood")
        notices.append("floating-point input (0 to 1) reduced to 8 bits")
        return "L"
    if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notices.append(f"{mode} input converted to RGB")
        return "RGB"
    raise ImageError(f"images of Pillow's mode {mode!r} are not supported: convert it to RGB first")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Gray levels of 16 bits (of integer dtypes) or in 0..1 (floating) as uint8, rounded to nearest."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ImageError("floating-point values that are not finite")
        return (values * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return ((values.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)  # equals round(v / 257) for every v


def _palette_is_gray(image: Image.Image) -> bool:
    index = image.getchannel(0) if image.mode == "PA" else image
    used = np.flatnonzero(index.histogram())
    palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours = palette[used[used < len(palette)]]
    return bool((colours == colours[:, :1]).all())


def _unturned(array: np.ndarray, orientation: Any) -> np.ndarray:
    """A view of an upright image, as its EXIF orientation has it stored."""
    if orientation in _TURNING:
        flips = {5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[orientation]
        return array[:: flips[0], :: flips[1]].swapaxes(0, 1)
    flips = {2: (1, -1), 3: (-1, -1), 4: (-1, 1)}.get(orientation, (1, 1))
    return array[:: flips[0], :: flips[1]]


# ---- errors


def _pillow_error(error: Exception) -> FastcodecError:
    """An error of Pillow's in our words. Its limits are told apart from damage."""
    text = str(error)
    for name, what in (
        ("MAX_TEXT_CHUNK", "a text or an ICC profile takes more than Pillow's limit of {} bytes, unpacked"),
        ("MAX_TEXT_MEMORY", "its texts take more than Pillow's limit of {} bytes together, unpacked"),
    ):
        if name in text:
            limit = what.format(getattr(PngImagePlugin, name))
            return LimitError(f"{limit}; set PIL.PngImagePlugin.{name} higher if you trust the file")
    if isinstance(error, Image.DecompressionBombError):
        return LimitError(
            f"more pixels than Pillow's limit allows ({' '.join(text.split())}); set PIL.Image.MAX_IMAGE_PIXELS higher "
            "if you trust the file"
        )
    return ImageError(_cause(error))


def _cause(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


# ---- parts of a .fic file


def decode_part(data: bytes | memoryview, form: str, mode: str, size: tuple[int, int], what: str) -> np.ndarray:
    """The pixels of an image in one of Pillow's formats, of this mode and size (width, height).

    Raises CorruptStreamError, whose message begins with `what`, for anything else.
    """
    try:
        # The size has passed our limit, so Pillow's must not stand in the way.
        with pillow_limit(size[0] * size[1]), Image.open(io.BytesIO(data), formats=[form]) as image:
            if image.size != size or image.mode != mode:
                raise CorruptStreamError(f"{what} are {image.mode} {image.size}, not {mode} {size}")
            return np.asarray(image)
    except (CorruptStreamError, MemoryError):
        raise
    except Exception as error:  # a plugin of Pillow may raise anything on hostile data
        raise CorruptStreamError(f"{what} do not decode: {error}") from error


_limit_lock = threading.Lock()
_limit_users = 0
_limit_before: int | None = None


@contextlib.contextmanager
def pillow_limit(max_pixels: int) -> Iterator[None]:
    """Raise Pillow's own limit, within the block, to a number of pixels that has been allowed already.

    It is one variable for the process, and Pillow's formats check it in several places: while pictures are read it is
    raised (never lowered), and put back after the last of them.
    """
    global _limit_users, _limit_before
    with _limit_lock:
        if _limit_users == 0:
            _limit_before = Image.MAX_IMAGE_PIXELS
        _limit_users += 1
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                Image.MAX_IMAGE_PIXELS = _limit_before
