"""The systems of the zoo as an engine: one image, one payload, in floating point.

Context and transforms see the whole image, so it is one tile. A file decodes with the same weights, on a machine of the
same kind (the model's `machine`, below); an integer twin's (`zoo/integerize.py`) everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..constants import IDENTITY_BYTES
from ..container import Container, Header
from ..errors import CorruptStreamError, ModelMismatchError, UnsupportedError
from ..geometry import Grid, Rect, ceil_div
from ..models.modules import in_layout
from ..models.zoo.base import CompressionModel
from ..models.zoo.integerize import require_exact
from ..models.zoo.portability import kind_of


def identity_of(model: CompressionModel) -> bytes:
    """SHA-256, cut to 6 bytes, of what the model is built of and of its state dict: weights, CDFs, scales, masks."""
    digest = hashlib.sha256(" ".join(type(module).__name__ for module in model.modules()).encode())
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.digest()[:IDENTITY_BYTES]


def network_input(model: CompressionModel, pixels: np.ndarray) -> Tensor:
    """Pixels, uint8 [H, W, 3] or [H, W], as a system takes them: float32 [1, 3, H', W'] in 0..1 on the device of its
    weights, the edge replicated to multiples of its stride."""
    x = torch.tensor(pixels, dtype=torch.float32, device=next(model.parameters()).device).div_(255)
    x = x.expand(3, -1, -1) if x.ndim == 2 else x.permute(2, 0, 1)
    height, width = x.shape[1:]
    return F.pad(x[None], (0, -width % model.stride, 0, -height % model.stride), mode="replicate")


@dataclass(frozen=True)
class _Levels:
    """Decoded pixels, one tensor a file, uint8 [height, width, 3] on the engine's device."""

    files: list[Tensor]

    def wait(self) -> np.ndarray:
        return np.stack([levels.cpu().numpy() for levels in self.files])


class WholeImageEngine:
    """One system on the device of its weights, which must not change while an engine has it."""

    batch_positions = 1
    mixes_qualities = True

    def __init__(self, model: CompressionModel) -> None:
        """Raises ExactnessError for an integer system on a device whose float64 products are not exact."""
        model.update()
        self.model = in_layout(model.eval(), torch.channels_last)
        self.identity = identity_of(model)
        self.device = next(model.parameters()).device
        if model.portable:
            require_exact(self.device)

    @property
    def machine(self) -> str:
        """The kind of machine on which its files decode; empty if they decode everywhere."""
        return "" if self.model.portable else kind_of(self.device)

    def send(self, pictures: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """What `encode` takes: the images as they are."""
        return pictures

    def encode(
        self, sent: Sequence[np.ndarray], grid: Grid, quality: int, preset: str
    ) -> tuple[list[list[bytes]], list[list[float]]]:
        """Encode images one by one: a payload each, and the model's float64 code length. Raises as `Engine.encode`."""
        model = self.model.at(quality)
        coded = [model.compress(network_input(self.model, pixels), preset) for pixels in sent]
        return [[item.payload] for item in coded], [[item.estimated_bits] for item in coded]

    def decode(self, files: Sequence[Container], area: Rect, precision: str) -> _Levels:
        """Decode whole files. Raises UnsupportedError for a region or another precision than "exact"."""
        if precision != "exact":
            raise UnsupportedError(f"this model has no precision {precision!r}, only 'exact'")
        return _Levels([self._levels(file, area) for file in files])

    def decode_into(self, files: Sequence[Container], area: Rect, out: Tensor) -> _Levels:
        """`decode`, into a tensor, uint8 [files, height, width, 3] of any strides."""
        for row, file in zip(out, files, strict=True):
            row.copy_(self._levels(file, area))
        return _Levels(list(out))

    def verify(self, file: Container) -> None:
        """Decode the symbols, check states and cursors. Raises CorruptStreamError."""
        self._latents(file)

    def latents(self, file: Container) -> Tensor:
        """The decoded latents y^ of a file, float [h, w, M], on the engine's device."""
        return self._latents(file)[0].permute(1, 2, 0)

    def written_elsewhere(self, header: Header) -> bool:
        """Whether another kind of machine wrote a file, for itself. ModelMismatchError for a file of another model."""
        if not header.float_entropy or header.identity != self.identity:
            raise ModelMismatchError(f"written with model {header.identity.hex()}, not with {self.identity.hex()}")
        return not header.portable and header.written_on != self.machine

    def _latents(self, file: Container) -> Tensor:
        """y^ [1, M, h, w]."""
        header, model = file.header, self.model.at(file.header.quality)
        payload, per_block = file.tile(0).payload, model.stride // model.latent_stride
        height, width = (ceil_div(size, model.stride) * per_block for size in (header.height, header.width))
        try:
            return model.decompress_latents(payload, (height, width))
        except CorruptStreamError as error:
            if not self.written_elsewhere(header):
                raise
            raise CorruptStreamError(
                f"{error}; the file is undamaged, but {header.written_on} wrote it, and floating point differs here"
            ) from error

    def _levels(self, file: Container, area: Rect) -> Tensor:
        """Pixels as the network gives them, uint8 [H, W, 3]."""
        header = file.header
        if area != Rect(0, 0, header.height, header.width):
            raise UnsupportedError("this model's networks see whole images: no region decodes alone, decode and crop")
        x = self.model.reconstruct(self._latents(file))
        levels = (x[0, :, : header.height, : header.width] * 255).round().to(torch.uint8)
        return levels.permute(1, 2, 0).contiguous()
