"""`import fastcodec.pillow` teaches Pillow to open and save .fic files.

    Image.open("photo.fic")                      # size, mode and metadata at once; pixels when they are asked for
    image.save("photo.fic", quality=60)          # also preset="latency", icc_profile=..., exif=...

A file that is not sound where it begins is not identified (UnidentifiedImageError); one that is damaged further on
raises OSError when its pixels are loaded, with fastcodec's error as its cause. Pillow's own limit of pixels holds.
"""

from __future__ import annotations

from functools import cache
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from . import container
from .container import DEFAULT_LIMITS, MAGIC, Limits
from .errors import CorruptStreamError, FastcodecError, ImageError
from .images import from_picture, to_picture

if TYPE_CHECKING:
    from .codec import Codec

FORMAT = "FIC"
MIME_TYPE = "image/x-fic"
DEFAULT_QUALITY = 60


class FicImageFile(ImageFile.ImageFile):
    """A .fic file opened by Pillow. `info` has its `quality`, and `icc_profile` and `exif` where it carries them."""

    format = FORMAT
    format_description = "fastcodec learned image"

    def _open(self) -> None:
        data = self.fp.read()
        try:
            header = container.read(data, _limits()).header
        except CorruptStreamError as error:
            raise SyntaxError(str(error)) from error  # by which Pillow's plugins say "not mine"
        self._data: bytes | None = data
        self._size = (header.width, header.height)
        self._mode = header.mode
        self.info["quality"] = header.quality
        if header.icc:
            self.info["icc_profile"] = header.icc
        if header.exif:
            self.info["exif"] = b"Exif\0\0" + header.exif

    def load(self) -> Any:
        """Decode the pixels, the first time."""
        if getattr(self, "_data", None) is not None:
            try:
                picture = _codec(_limits()).decode_picture(self._data)
            except FastcodecError as error:
                raise OSError(f"cannot decode the .fic file: {error}") from error
            self.im = from_picture(picture, "pil").im
            self._data = None
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
                self.fp = None
        return super().load()

    def verify(self) -> None:
        """Check every tile without decoding a pixel; OSError if one is damaged."""
        if self._data is None:
            raise RuntimeError("verify must be called directly after open")
        try:
            _codec(_limits()).verify(self._data)
        except FastcodecError as error:
            raise OSError(f"broken .fic file: {error}") from error


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
    given = {key: options[key] for key in ("icc_profile", "exif") if options.get(key) is not None}
    if given:
        if isinstance(given.get("exif"), Image.Exif):
            given["exif"] = given["exif"].tobytes()
        image = image.copy()
        image.info.update(given)
    picture = to_picture(image)
    codec = _codec(DEFAULT_LIMITS)
    stream.write(
        codec.encode_picture(
            picture, quality=options.get("quality", DEFAULT_QUALITY), preset=options.get("preset", "size")
        ).data
    )


def _save_all(image: Image.Image, stream: IO[bytes], filename: str | bytes) -> None:
    if image.encoderinfo.get("append_images") or getattr(image, "n_frames", 1) > 1:
        raise ImageError("a .fic file holds one image: save the frames one by one")
    _save(image, stream, filename)


Image.register_open(FORMAT, FicImageFile, lambda prefix: prefix.startswith(MAGIC))
Image.register_save(FORMAT, _save)
Image.register_save_all(FORMAT, _save_all)
Image.register_extension(FORMAT, ".fic")
Image.register_mime(FORMAT, MIME_TYPE)
