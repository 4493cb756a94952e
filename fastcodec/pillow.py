"""`import fastcodec.pillow` teaches Pillow to open and save .fic files.

    Image.open("photo.fic")                      # size, mode and metadata at once; pixels when they are asked for
    image.save("photo.fic", quality=60)          # also preset="latency", lossless=True, icc_profile=, exif=, xmp=, dpi=

A file that is not sound where it begins is not identified (UnidentifiedImageError); one that is damaged further on
raises OSError when its pixels are loaded, with fastcodec's error as its cause. What follows a .fic file in the same
stream is ignored. Pillow's own limit of pixels holds.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from . import container, metadata
from .constants import DEFAULT_QUALITY
from .container import DEFAULT_LIMITS, MAGIC, Limits
from .errors import CorruptStreamError, FastcodecError, ImageError
from .images import to_picture

if TYPE_CHECKING:
    from .codec import Codec

FORMAT = "FIC"
MIME_TYPE = "image/x-fic"

_FIRST_READ = 1 << 16  # bytes: the header of most files, and all of a small one
_OPTIONS = {"quality", "preset", "lossless", "append_images", *metadata.INFO_NAMES}


class FicImageFile(ImageFile.ImageFile):
    """A .fic file opened by Pillow. `info` has its `quality`, and what it carries of `icc_profile`, `exif`, `xmp` and
    `dpi`."""

    format = FORMAT
    format_description = "fastcodec learned image"

    def _open(self) -> None:
        if self.fp is None:
            raise SyntaxError("no file to read")
        try:
            data = _read_one(self.fp)
            header = container.read(data, _limits()).header
        except CorruptStreamError as error:
            raise SyntaxError(str(error)) from error  # by which Pillow's plugins say "not mine"
        self._data: bytes | None = data
        self._size = (header.width, header.height)
        self._mode = header.mode
        self.info["quality"] = header.quality
        self.info.update(metadata.as_info(header))

    def load(self) -> Any:
        """Decode the pixels, the first time."""
        data: bytes | None = getattr(self, "_data", None)
        if data is not None:
            try:
                image = _codec(_limits()).decode(data)
            except FastcodecError as error:
                raise OSError(f"cannot decode the .fic file: {error}") from error
            self.im = image.im
            self.readonly = 0
            self._data = None
            self._let_go()
        return super().load()

    def verify(self) -> None:
        """Check every tile without decoding a pixel; OSError if one is damaged. As with Pillow's own formats, the file
        is closed then."""
        if self._data is None:
            raise RuntimeError("verify must be called directly after open")
        try:
            _codec(_limits()).verify(self._data)
        except FastcodecError as error:
            raise OSError(f"broken .fic file: {error}") from error
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._exclusive_fp and self.fp is not None:
            self.fp.close()
        self.fp = None


def _read_one(stream: IO[bytes]) -> bytes:
    """The .fic file that begins where the stream stands, and not much more of the stream than it takes."""
    data = stream.read(_FIRST_READ)
    while (length := container.length(data, _limits())) is None and (more := stream.read(len(data))):
        data += more
    if length is None or length <= len(data):
        return data[:length]
    return data + stream.read(length - len(data))


def _limits() -> Limits:
    # Pillow warns past its limit and refuses past twice as much; ours must not refuse what Pillow was told to accept.
    limit = Image.MAX_IMAGE_PIXELS
    pixels = 1 << 48 if limit is None else max(DEFAULT_LIMITS.max_pixels, 2 * limit)
    return Limits(pixels, DEFAULT_LIMITS.max_metadata)


@cache
def _codec(limits: Limits) -> Codec:
    from .codec import Codec  # imports PyTorch: when pixels are wanted, not when a header is

    # On the CPU: images are opened in the forked workers of data loaders, where CUDA cannot be used.
    return Codec.load("swift", "cpu", limits)


def _save(image: Image.Image, stream: IO[bytes], filename: str | bytes) -> None:
    options = image.encoderinfo
    if options.get("append_images"):
        raise ImageError("a .fic file holds one image: save the images of append_images one by one")
    if unknown := set(options) - _OPTIONS:
        warnings.warn(
            f"options that .fic does not have: {', '.join(sorted(map(str, unknown)))}; "
            f"it has {', '.join(sorted(_OPTIONS))}",
            stacklevel=3,
        )
    encoded = _codec(DEFAULT_LIMITS).encode(
        to_picture(image, metadata.given_metadata(options)),
        quality=options.get("quality", DEFAULT_QUALITY),
        preset=options.get("preset", "size"),
        lossless=bool(options.get("lossless", False)),
    )
    stream.write(encoded)


def _save_all(image: Image.Image, stream: IO[bytes], filename: str | bytes) -> None:
    if getattr(image, "n_frames", 1) > 1:
        raise ImageError("a .fic file holds one image: save the frames one by one")
    _save(image, stream, filename)


Image.register_open(FORMAT, FicImageFile, lambda prefix: prefix.startswith(MAGIC))
Image.register_save(FORMAT, _save)
Image.register_save_all(FORMAT, _save_all)
Image.register_extension(FORMAT, ".fic")
Image.register_mime(FORMAT, MIME_TYPE)
