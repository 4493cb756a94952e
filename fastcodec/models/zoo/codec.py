"""Real .fic files of the zoo's systems: one whole-image payload, the flag of a floating-point entropy side."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcodec import container
from fastcodec.constants import IDENTITY_BYTES
from fastcodec.container import DEFAULT_LIMITS, Container, Header, Limits, TileData
from fastcodec.errors import CorruptStreamError, ImageError, ModelMismatchError
from fastcodec.geometry import ceil_div
from fastcodec.images import ImageLike, Picture, from_picture, to_picture

from .base import CompressionModel


@dataclass(frozen=True)
class Encoded:
    """A file, and the code length that the model's float64 probabilities give."""

    data: bytes
    estimated_bits: float


def identity(model: CompressionModel) -> bytes:
    """SHA-256, cut to 6 bytes, of what the model is built of and of its state dict: weights, CDFs, scales, masks."""
    digest = hashlib.sha256(" ".join(type(module).__name__ for module in model.modules()).encode())
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.digest()[:IDENTITY_BYTES]


class Codec:
    """Encodes and decodes images with one system of the zoo, on the device of its weights.

    A file decodes with the same weights, on a machine of the same kind (`Compressed` says why). The model must not
    change while a codec has it. quality: what the header says, 1..100; for information only.
    """

    def __init__(self, model: CompressionModel, quality: int = 1, limits: Limits = DEFAULT_LIMITS):
        model.update()
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.identity = identity(model)
        self.quality, self.limits = quality, limits

    def encode(self, image: ImageLike) -> bytes:
        """A PIL image, an HWC or HW uint8 array, or a CHW uint8 tensor, of any size, to a .fic file's bytes.

        Raises ImageError for what is not an image, and for one with alpha.
        """
        return self.encode_picture(to_picture(image)).data

    def encode_picture(self, picture: Picture) -> Encoded:
        """`encode` for a `Picture`, with the estimate beside the bytes."""
        if picture.alpha is not None:
            raise ImageError("the papers' systems code no alpha: flatten the image first")
        compressed = self.model.compress(self._input(picture.pixels))
        header = Header(
            width=picture.width,
            height=picture.height,
            quality=self.quality,
            identity=self.identity,
            grayscale=picture.pixels.ndim == 2,
            float_entropy=True,
            icc=picture.icc,
            exif=picture.exif,
        )
        return Encoded(container.write(header, [TileData(compressed.payload)]), compressed.estimated_bits)

    def decode(self, data: bytes | bytearray | memoryview, out: str = "pil"):
        """A file to uint8 pixels: a PIL image ("pil"), an HWC array ("numpy") or a CHW tensor ("tensor").

        Raises CorruptStreamError, UnsupportedVersionError, LimitError, and ModelMismatchError for a file of another
        model or of other weights.
        """
        return from_picture(self.decode_picture(data), out)

    def decode_picture(self, data: bytes | bytearray | memoryview) -> Picture:
        """`decode` to a `Picture`: pixels and metadata."""
        parsed = container.read(data, self.limits)
        header = parsed.header
        if not header.float_entropy or header.identity != self.identity:
            raise ModelMismatchError(f"written with model {header.identity.hex()}, not with {self.identity.hex()}")
        x = self.model.decompress(_payload(parsed), self._latent_shape(header))
        levels = (x[0, :, : header.height, : header.width] * 255).round().to(torch.uint8)
        pixels = levels.permute(1, 2, 0).contiguous().cpu().numpy()
        if header.grayscale:
            pixels = ((pixels.astype(np.uint16).sum(2) + 1) // 3).astype(np.uint8)
        return Picture(pixels, None, header.icc, header.exif)

    def _input(self, pixels: np.ndarray) -> Tensor:
        """[1, 3, H, W] in 0..1, the edge replicated to multiples of the model's stride."""
        device = next(self.model.parameters()).device
        x = torch.tensor(pixels, device=device).float().div_(255)
        x = x.expand(3, -1, -1) if x.ndim == 2 else x.permute(2, 0, 1)
        height, width = x.shape[1:]
        return F.pad(x[None], (0, -width % self.model.stride, 0, -height % self.model.stride), mode="replicate")

    def _latent_shape(self, header: Header) -> tuple[int, int]:
        stride = self.model.stride
        per_block = stride // self.model.latent_stride
        return ceil_div(header.height, stride) * per_block, ceil_div(header.width, stride) * per_block


def _payload(parsed: Container) -> memoryview:
    """The whole image's payload; CorruptStreamError if there is more than that."""
    if parsed.header.alpha:
        raise CorruptStreamError("a file of a floating-point model has no alpha")
    return parsed.tile(0).payload
