"""Real .fic files of the zoo's systems: one payload and one tile for the whole image, and the kind of machine.

The methods are those of `fastcodec.Codec`. Images are coded one by one: in a batch, convolutions may sum in another
order, and the decoder would need the encoder's batch.
"""

from __future__ import annotations

import copy
import hashlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .. import _calls, container
from .. import codec as swift
from ..alpha import encode_alpha, read_alpha
from ..codec import DecodedTensor, DeviceLike, Encoded, Output, Precision, Preset, check_alike, device_of, each
from ..constants import IDENTITY_BYTES, MIN_QUALITY
from ..container import DEFAULT_LIMITS, Container, Header, Limits, TileData
from ..errors import CorruptStreamError, ModelMismatchError, NotPortableWarning, UnsupportedError
from ..geometry import Rect, ceil_div
from ..images import ImageLike, Picture, from_picture, to_picture
from ..kernels import forks
from ..models.zoo import integerize as integer
from ..models.zoo.base import CompressionModel
from ..models.zoo.portability import kind_of
from ..quality import checked_quality
from ..sources import FileLike, naming, several

_PACKAGE = __name__.partition(".")[0]
_VARIABLE_QUALITY = 60  # as `fastcodec.Codec`


def identity(model: CompressionModel) -> bytes:
    """SHA-256, cut to 6 bytes, of what the model is built of and of its state dict: weights, CDFs, scales, masks."""
    digest = hashlib.sha256(" ".join(type(module).__name__ for module in model.modules()).encode())
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.digest()[:IDENTITY_BYTES]


class Codec:
    """Encodes and decodes images with one system of the zoo, on the device of its weights.

    A file decodes with the same weights, on a machine of the same kind; on another, NotPortableWarning is given, and
    what does not decode there ends in CorruptStreamError. The model must not change while a codec has it. One instance
    may be shared by any number of threads. A pickle has the weights, and the device that they go to again; of a forked
    process the same holds as of `fastcodec.Codec`.

    report: what its conversion to integers cost, if `fastcodec.integerize` made it.

    quality: 1..100. Where the system has a variable rate, what `encode` takes if it is not told, 60 if None; else only
    what the header says, 1 if None.
    """

    report: integer.Report | None = None

    def __init__(self, model: CompressionModel, quality: int | None = None, limits: Limits = DEFAULT_LIMITS):
        model.update()
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.identity = identity(model)
        self.limits = limits
        self.device = next(model.parameters()).device
        if model.portable:
            integer.require_exact(self.device)
        usual = _VARIABLE_QUALITY if model.variable_rate else MIN_QUALITY
        self.quality = usual if quality is None else checked_quality(quality)

    def __getstate__(self) -> dict[str, Any]:
        model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        return {**self.__dict__, "model": model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.model = self.model.to(device_of(self.device))
        if self.model.portable:
            integer.require_exact(self.device)

    @property
    def machine(self) -> str:
        """The kind of machine for which files are written; empty if they decode everywhere."""
        return "" if self.model.portable else kind_of(self.device)

    @_calls.counted
    def encode(self, image: ImageLike, quality: int | None = None, preset: Preset = "size") -> bytes:
        """A PIL image, an HWC or HW uint8 array, or a CHW uint8 tensor, of any size, to a .fic file's bytes.

        quality: the codec's if None. preset: "size", or "latency" for more of the coder's lanes. Raises ImageError for
        what is not an image, UnsupportedError for another quality than the codec's if the system has one rate.
        """
        return self.encode_picture(to_picture(image), quality, preset).data

    @_calls.counted
    def encode_batch(
        self, images: Sequence[ImageLike], quality: int | None = None, preset: Preset = "size"
    ) -> list[bytes]:
        """`encode` for several images. What it raises begins with the image's number, as in "item 3: ...", from 0."""
        return each(lambda image: self.encode(image, quality, preset), images)

    @_calls.counted
    def encode_pictures(
        self, pictures: Sequence[Picture], quality: int | None = None, preset: Preset = "size"
    ) -> list[Encoded]:
        """`encode_picture` for several. Errors as of `encode_batch`."""
        return each(lambda picture: self.encode_picture(picture, quality, preset), pictures)

    @_calls.counted
    def encode_picture(self, picture: Picture, quality: int | None = None, preset: Preset = "size") -> Encoded:
        """`encode` for a `Picture`, with the model's float64 code length beside the bytes."""
        quality = self._chosen(quality)
        compressed = self.model.at(quality).compress(self._input(picture.pixels), preset)
        header = Header(
            width=picture.width,
            height=picture.height,
            quality=quality,
            identity=self.identity,
            grayscale=picture.pixels.ndim == 2,
            alpha=picture.alpha is not None,
            float_entropy=True,
            icc=picture.icc,
            exif=picture.exif,
            xmp=picture.xmp,
            written_on=self.machine,
        )
        (tile,) = header.grid.tiles()
        alpha = encode_alpha(picture.alpha, tile, header.grid)
        data = container.write(header, [TileData(compressed.payload, alpha)])
        return Encoded(data, compressed.estimated_bits, quality)

    @_calls.counted
    def encode_to_size(self, picture: Picture, target_bytes: int, preset: Preset = "size") -> Encoded:
        """Encode at the highest quality whose file has at most `target_bytes` bytes; TargetError if none has.

        UnsupportedError if the system has one rate.
        """
        if not self.model.variable_rate:
            raise UnsupportedError("this model has one rate: no quality meets a size")
        return swift.Codec.encode_to_size(self, picture, target_bytes, preset)  # a search by `encode_picture`

    @_calls.counted
    def decode(
        self,
        data: FileLike,
        *,
        out: Output = "pil",
        region: tuple[int, int, int, int] | None = None,
        precision: Precision = "exact",
    ) -> Image.Image | np.ndarray | Tensor:
        """A file to uint8 pixels: a PIL image, an HWC (HW if grayscale) array or a CHW tensor, on the CPU.

        data: the file's bytes, its path, or a binary file object, as `fastcodec.Codec.decode` takes it.

        Raises what that raises (ModelMismatchError for a file of other weights too), and UnsupportedError for a region
        or another precision than "exact".
        """
        return from_picture(self.decode_picture(data, region=region, precision=precision), out)

    @_calls.counted
    def decode_batch(
        self, files: Sequence[FileLike], *, out: Output = "pil", precision: Precision = "exact"
    ) -> list[Image.Image | np.ndarray | Tensor]:
        """`decode` for several files. What it raises begins with the file's number, as in "item 3: ...", from 0."""
        return each(lambda file: self.decode(file, out=out, precision=precision), several(files))

    @_calls.counted
    def decode_pictures(self, files: Sequence[FileLike], *, precision: Precision = "exact") -> list[Picture]:
        """`decode_picture` for several. Errors as of `decode_batch`."""
        return each(lambda file: self.decode_picture(file, precision=precision), several(files))

    @_calls.counted
    def decode_picture(
        self,
        data: FileLike,
        *,
        region: tuple[int, int, int, int] | None = None,
        precision: Precision = "exact",
    ) -> Picture:
        """`decode` to a `Picture`: pixels, alpha and metadata."""
        _whole(region, precision)
        with naming(data):
            parsed = self._read(data)
            levels = self._levels(parsed).cpu().numpy()
            return swift._picture(parsed.header, levels, self._alpha(parsed))

    @_calls.counted
    def decode_tensor(
        self,
        files: Sequence[FileLike],
        *,
        out: Tensor | None = None,
        region: tuple[int, int, int, int] | None = None,
    ) -> DecodedTensor:
        """Decode files of equal size to uint8 [files, 3, height, width] on the codec's device, without alpha.

        out: where to, if not None. Returns when it is done. Raises what `decode` raises, and ValueError for files of
        different sizes or an `out` that does not fit.
        """
        _whole(region)
        files = several(files)
        parsed = each(self._read_named, files)
        sizes = [(item.header.height, item.header.width) for item in parsed]
        check_alike(sizes)
        shape = (len(parsed), 3, *sizes[0])
        if out is None:
            out = torch.empty(shape, dtype=torch.uint8, device=self.device)
        elif out.shape != shape or out.dtype != torch.uint8 or out.device != self.device:
            raise ValueError(
                f"out must be uint8 {list(shape)} on {self.device}, not {out.dtype} {list(out.shape)} on {out.device}"
            )

        def fill(number: int) -> None:
            with naming(files[number]):
                out[number].copy_(self._levels(parsed[number]).permute(2, 0, 1))

        each(fill, range(len(files)))
        return DecodedTensor(out, lambda: None)

    @_calls.counted
    def verify(self, data: FileLike) -> None:
        """Decode the latents and alpha, check every state, cursor and CRC; run no synthesis.

        Raises what `decode` raises; returns only if the whole file is sound and decodes on this machine.
        """
        with naming(data):
            parsed = self._read(data)
            self._latents(parsed)
            self._alpha(parsed)

    @_calls.counted
    def latents(self, data: FileLike) -> Tensor:
        """The decoded latents y^ of a file, float [h, w, M], on the codec's device."""
        with naming(data):
            return self._latents(self._read(data))[0].permute(1, 2, 0)

    def save(self, path: str | Path) -> None:
        """Write the model to a file that `Codec.load` and the command line's --model take."""
        from ..models.zoo import checkpoints as convert

        convert.save(self.model, path)

    @classmethod
    def load(
        cls, path: str | Path, device: DeviceLike = "auto", limits: Limits = DEFAULT_LIMITS, name: str | None = None
    ) -> Codec:
        """The codec of a model file: what `save` wrote, or a checkpoint of CompressAI's (.pth, .pth.tar).

        device: as `fastcodec.Codec.load` takes it. name: as for `from_compressai`. Raises UnknownModelError for another
        file, UnsupportedError for more scales than the coder has tables, UnavailableError for a device that is not
        there.
        """
        from ..models.zoo import checkpoints as convert

        return cls(convert.read(path, name).to(device_of(device)), limits=limits)

    def _chosen(self, quality: int | None) -> int:
        if quality is None:
            return self.quality
        if checked_quality(quality) != self.quality and not self.model.variable_rate:
            raise UnsupportedError(f"this model has one rate, called quality {self.quality}, and no quality {quality}")
        return quality

    def _input(self, pixels: np.ndarray) -> Tensor:
        """[1, 3, H, W] in 0..1, the edge replicated to multiples of the model's stride."""
        x = torch.tensor(pixels, dtype=torch.float32, device=self.device).div_(255)
        x = x.expand(3, -1, -1) if x.ndim == 2 else x.permute(2, 0, 1)
        height, width = x.shape[1:]
        return F.pad(x[None], (0, -width % self.model.stride, 0, -height % self.model.stride), mode="replicate")

    def _elsewhere(self, header: Header) -> bool:
        """Whether another kind of machine wrote a file for itself."""
        return not header.portable and header.written_on != self.machine

    def _read_named(self, file: FileLike) -> Container:
        with naming(file):
            return self._read(file)

    def _read(self, data: FileLike) -> Container:
        """The container of a file of this model. Warns of another machine."""
        if self.device.type == "cuda":
            forks.check_gpu()
        parsed = container.read(data, self.limits)
        header = parsed.header
        if not header.float_entropy or header.identity != self.identity:
            raise ModelMismatchError(f"written with model {header.identity.hex()}, not with {self.identity.hex()}")
        if self._elsewhere(header):
            warnings.warn(
                f"written on {header.written_on}, and this is {self.machine}: it may not decode",
                NotPortableWarning,
                stacklevel=_callers_level(),
            )
        return parsed

    def _latents(self, parsed: Container) -> Tensor:
        """y^ [1, M, h, w]."""
        header, model = parsed.header, self.model.at(parsed.header.quality)
        payload, per_block = parsed.tile(0).payload, model.stride // model.latent_stride
        shape = [ceil_div(size, model.stride) * per_block for size in (header.height, header.width)]
        try:
            return model.decompress_latents(payload, tuple(shape))
        except CorruptStreamError as error:
            if not self._elsewhere(header):
                raise
            raise CorruptStreamError(
                f"{error}; the file is undamaged, but {header.written_on} wrote it, and floating point differs here"
            ) from error

    def _levels(self, parsed: Container) -> Tensor:
        """Pixels as the network gives them, uint8 [H, W, 3]."""
        x = self.model.reconstruct(self._latents(parsed))
        levels = (x[0, :, : parsed.header.height, : parsed.header.width] * 255).round().to(torch.uint8)
        return levels.permute(1, 2, 0).contiguous()

    def _alpha(self, parsed: Container) -> np.ndarray | None:
        return read_alpha(parsed, Rect(0, 0, parsed.header.height, parsed.header.width))


def _callers_level() -> int:
    """The level of a warning of `_read`'s that is about who called this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level


def _whole(region: tuple[int, int, int, int] | None, precision: Precision = "exact") -> None:
    """UnsupportedError for what only a portable model can do."""
    if region is not None:
        raise UnsupportedError("this model's networks see the whole image: no region decodes alone, decode and crop")
    if precision != "exact":
        raise UnsupportedError(f"this model has no precision {precision!r}, only 'exact'")
