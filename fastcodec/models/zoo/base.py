"""The base of every system of the zoo: a network that compresses one image to one payload and back.

A system defines its layers, `encode_latents` and `decode_latents`, the coding in the order of its paper, and `forward`
for training. Everything is floating point: a payload decodes where the same library runs on the same kind of machine,
as with any other codec of this kind, and nowhere else for sure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...errors import ImageError
from ...kernels import rans
from .entropy_bottleneck import CodedEntropyModel, EntropyBottleneck

# Constants that CompressAI keeps as buffers; older checkpoints lack some of them.
_CONSTANTS = re.compile(r"(^|\.)(bound|pedestal|target|scale_bound|mask)$")


@dataclass(frozen=True)
class Coded:
    """An image's latents, coded: the passes in order, the latents as the decoder will have them, the code length."""

    passes: Sequence[rans.Pass | rans.MixturePass]
    bits: float
    y_hat: Tensor  # [1, M, h, w]
    streams: int | None = None  # of the coder, which chooses for None; passes of one position can use but one


@dataclass(frozen=True)
class Compressed:
    """A payload of the coder, the latents' rows and columns, and the bits that the model expected it to take."""

    payload: bytes
    shape: tuple[int, int]
    estimated_bits: float


@dataclass(frozen=True)
class Report:
    """The cost of the conversion on the calibration images: code lengths in bits, of the same latents y."""

    images: int
    float_bits: float
    integer_bits: float

    @property
    def cost(self) -> float:
        """integer_bits / float_bits - 1."""
        return self.integer_bits / self.float_bits - 1


class CompressionModel(nn.Module):
    """One system at one rate.

    Attributes:
        stride: pixels a latent of the deepest layer: images must be multiples of it.
        latent_stride: pixels a latent y.
        portable: whether the entropy side is in integers (integerize.py), so that a payload decodes everywhere.
        variable_rate: whether it has a rate for each quality (`at`); the others have one.
        report: what its conversion to integers cost, if it is a twin in integers that was made in this process.
    """

    stride = 64
    latent_stride = 16
    portable = False
    variable_rate = False
    report: Report | None = None
    #: (ours, CompressAI's) prefixes of parameter names, where its class of a model nests them otherwise.
    layout: tuple[tuple[str, str], ...] = ()

    g_a: nn.Module
    g_s: nn.Module

    def __init__(self) -> None:
        super().__init__()
        if self.layout:
            self.register_state_dict_post_hook(_to_compressai_names)

    # --- to be defined by a system ----------------------------------------------------------------------------------

    @classmethod
    def from_shapes(cls, state: Mapping[str, Tensor], **options: Any) -> Self:
        """A system with the channels N and M of a state dict, whose weights are not loaded. KeyError for a foreign one.

        options: those of the class beside N and M.
        """
        make: Callable[..., Self] = cls  # a system takes what this base class does not
        return make(state["g_a.0.weight"].shape[0], state["g_a.6.weight"].shape[0], **options)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """One training pass. x: RGB [B, 3, H, W] in 0..1, multiples of `stride`.

        Rounding is replaced by uniform noise (Ballé 2017, section 3.1). Returns x_hat like x, and y_bits and z_bits
        [B], the bits of each image's latents and hyper latents.
        """
        raise NotImplementedError

    def encode_latents(self, y: Tensor) -> Coded:
        """Code y [1, M, h, w]."""
        raise NotImplementedError

    def decode_latents(self, decoder: rans.Decoder, height: int, width: int) -> Tensor:
        """The inverse: y^ [1, M, height, width], by the passes of `encode_latents`."""
        raise NotImplementedError

    # --- the same for all -------------------------------------------------------------------------------------------

    def at(self, quality: int) -> CompressionModel:
        """The system that codes at a quality, 1..100: this one, unless it has several rates (kamisli2024.py)."""
        return self

    def compress(self, x: Tensor, preset: str = "size") -> Compressed:
        """x: RGB float32 [1, 3, H, W] in 0..1, multiples of `stride`, on the model's device. preset: the coder's.

        Raises ImageError where the analysis gives no finite latents, SymbolRangeError for symbols beyond 16 bits,
        ValueError for another size.
        """
        if x.shape[0] != 1 or x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(f"one image of multiples of {self.stride} pixels is needed, not {list(x.shape)}")
        with coding():
            y = self.g_a(channels_last(x.to(_dtype(self.g_a))))
            if not torch.isfinite(y).all():
                raise ImageError("the analysis did not give finite latents")
            with self._threads():
                coded = self.encode_latents(y)
        (payload,) = rans.encode([coded.passes], preset=preset, streams=coded.streams)
        return Compressed(payload, (y.shape[2], y.shape[3]), coded.bits)

    def decompress(self, payload: bytes | memoryview, shape: tuple[int, int]) -> Tensor:
        """The image of a payload, float32 [1, 3, H, W] in 0..1; shape: that of `Compressed`.

        Raises CorruptStreamError for what `compress` did not write, as far as the coder can tell.
        """
        return self.reconstruct(self.decompress_latents(payload, shape))

    def decompress_latents(self, payload: bytes | memoryview, shape: tuple[int, int]) -> Tensor:
        """`decompress` without synthesis: y^ [1, M, h, w]. Checks all that `decompress` does."""
        with coding(), self._threads():
            decoder = rans.Decoder([payload], device=next(self.parameters()).device)
            y_hat = self.decode_latents(decoder, *shape)
            decoder.finish()
        return y_hat

    def reconstruct(self, y_hat: Tensor) -> Tensor:
        """The image of decoded latents y^ [1, M, h, w], float32 [1, 3, H, W] in 0..1."""
        with coding():
            return self.g_s(channels_last(y_hat.to(_dtype(self.g_s)))).clamp(0, 1).float()

    def _threads(self) -> AbstractContextManager[None]:
        return nullcontext() if self.portable else one_thread()

    def update(self, *, fit_quantiles: bool = False, force: bool = False) -> None:
        """Make the coder's tables, where a checkpoint did not bring them. Part of the state dict from then on.

        fit_quantiles: first find the factorised priors' medians and bounds (after training); implies force.
        """
        for module in self.modules():
            if fit_quantiles and isinstance(module, EntropyBottleneck):
                module.fit_quantiles()
            if isinstance(module, CodedEntropyModel) and (force or fit_quantiles or not module.updated):
                module.update()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict of this class, or of CompressAI's in any of its layouts. RuntimeError for foreign keys."""
        state = {self._our_name(name): tensor for name, tensor in state_dict.items()}
        for name, tensor in _constants(self):
            state.setdefault(name, tensor)
        return super().load_state_dict(state, strict, assign)

    def _our_name(self, name: str) -> str:
        name = name.removeprefix("module.")  # saved from DataParallel
        name = name.replace(".downsample.", ".skip.")  # CompressAI before 1.0
        for ours, theirs in self.layout:
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return name


def _constants(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, buffer) for name, buffer in model.named_buffers() if _CONSTANTS.search(name))


def _to_compressai_names(model: CompressionModel, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        for ours, theirs in model.layout:
            if name.startswith(prefix + ours):
                state[prefix + theirs + name.removeprefix(prefix + ours)] = state.pop(name)
                break


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


@contextmanager
def coding() -> Iterator[None]:
    """No gradients, no half precision, and on a GPU no algorithm that may round differently from call to call."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        with torch.inference_mode(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of the CPU for this thread's operations: with more, convolutions and matrix products sum in another
    order, and a file would decode only where there are as many as where it was written."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def channels_last(x: Tensor) -> Tensor:
    """x [1, C, h, w], its channels fastest in memory: the layout in which convolutions and GDN are fastest.

    Copied even if it lies so already. The strides of an axis of length 1 may be anything, and `contiguous` leaves them,
    but PyTorch chooses a convolution's algorithm by them, and another algorithm rounds otherwise: without the copy, the
    decoder's h_s would not give what the encoder's gave for the same hyper latents.
    """
    return x.clone(memory_format=torch.channels_last)


def positions(grid: Tensor) -> Tensor:
    """[1, C, h, w] to [h * w, C], row-major, contiguous: as the coder and the pointwise networks take them."""
    return grid[0].permute(1, 2, 0).reshape(-1, grid.shape[1]).contiguous()


def on_grid(rows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `positions`."""
    return rows.view(1, height, width, -1).permute(0, 3, 1, 2)
