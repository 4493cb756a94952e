"""The transforms of a released model on a GPU: g_a, h_a and g_s as a few kernels, channels last, without a host wait.

    analysis        pixels -- from_pixels -- 3 blocks -- 5x5, stride 2 -- block --> y * gain
    hyper_analysis  asinh(y) -- 3x3 -- 5x5, stride 2 -- 5x5, stride 2 --> z
    synthesis       y^ / gain -- block -- upsample_2 -- 3 blocks -- 3x3 -- to_pixels --> pixels

These are the networks of `swift.py` with their operations grouped by what lies in memory between them
(`fastcodec.kernels.triton`); dense convolutions are PyTorch's. Activations and the weights of products are fp16, which
released weights are to begin with; the kernels' sums, biases and activation functions are float32. In this arithmetic,
over the Kodak set at qualities 10, 60 and 100, no activation of the synthesis exceeds 16 and no value is further than
0.27 levels from float32's before it is rounded, so pixels differ by one level at most. bfloat16 is not offered: tensor
cores are no faster with it, and values move by two levels. Where the model has a limit, every feature is inside fp16's
range whatever the pixels or the latents are (`bounds.py` proves it of each release). Releases without one are older;
latents that no encoder made may leave the range there, and their pixels are of no use then, but they are pixels.

On the CPU the same code runs on the kernels' references, or on the kernels in Triton's interpreter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..constants import HYPER_STRIDE, LATENT_STRIDE, MAX_QUALITY, MIN_QUALITY
from ..geometry import ceil_div
from ..kernels.triton.pixels import from_pixels, to_pixels
from ..kernels.triton.pointwise import Expansion, Layer, QualityScale, expand
from ..kernels.triton.residual import BlockWeights, residual_block
from ..kernels.triton.upsample import upsample_2
from ..models.swift.entropy_model import ACTIVATION_MAX
from ..models.swift.network import Block, QualityTable, quality_position
from ..models.swift.release import Model


class Transforms:
    """A model's transforms on one device, in one dtype: float16, or float32 to compare with.

    Holds the weights laid out for the kernels. Immutable, so threads may share it. Every method enqueues its work and
    returns: nothing waits for the device, so a CUDA graph can capture it. `quality` is everywhere int32 [B] on the
    device: each image's quality less MIN_QUALITY. Raises ValueError for another dtype.
    """

    def __init__(self, model: Model, device: torch.device | str, dtype: torch.dtype = torch.float16):
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"the transforms run in float16 or float32, not in {dtype}")
        self.dtype = dtype
        self._limit = math.inf if model.config.limit is None else model.config.limit
        put = _Placement(torch.device(device), dtype)
        g_a, h_a, g_s = model.g_a, model.h_a, model.g_s
        channels, latents = model.config.features, model.config.latents
        with torch.no_grad():
            # Colours slowest: the kernel multiplies one colour of its pixels at a time.
            weight = put.factor(g_a.head.weight.view(channels, 3, -1).transpose(0, 1))
            self._from_pixels = Layer(weight, put.addend(_bias(g_a.head)))
            self._analysis_modulation = put.addend(1 + _rows(g_a.modulation))
            self._analysis_blocks = [put.block(block) for block in g_a.blocks]
            self._down = put.kernel(g_a.down), put.factor(_bias(g_a.down))
            self._analysis_tail = put.block(g_a.tail)
            self._gain = put.addend(model.gain)

            self._hyper_head = put.kernel(h_a.head)
            self._hyper_head_bias = put.factor(_bias(h_a.head) + _rows(h_a.modulation))
            self._hyper_down1 = put.kernel(h_a.down1), put.factor(_bias(h_a.down1))
            # h_a's last factor of 4, a power of two, moves nothing when it is multiplied into the weights.
            self._hyper_down2 = 4 * put.kernel(h_a.down2), 4 * put.factor(_bias(h_a.down2))

            self._synthesis_head = put.block(g_s.head)
            # A pixel shuffle's channels are 4 c + 2 row + column; the kernel's layers are 2 row + column.
            weight = put.factor(g_s.up.weight.view(channels, 4, latents).transpose(0, 1))
            bias = put.addend(_bias(g_s.up).view(channels, 4).T)
            self._upsample_2 = Layer(weight, bias)
            self._synthesis_modulation = put.addend(1 + _rows(g_s.modulation))
            self._synthesis_blocks = [put.block(block) for block in g_s.blocks]
            self._tail = put.kernel(g_s.tail)
            self._tail_bias = put.addend(_bias(g_s.tail) + 0.5)

    def synthesis(self, latents: Tensor, quality: Tensor, pixels: Tensor, top: int = 0, left: int = 0) -> None:
        """g_s: latents behind the inverse gain, [B, h, w, M] of `dtype`, to uint8 pixels [B, H, W, 3].

        pixels gets the rectangle of the 16h x 16w pixels whose upper left corner is row `top` and column `left`; it may
        be a part of larger images, as long as each of its rows lies in one piece.
        """
        if self._limit < math.inf:
            latents = latents.clamp(-self._limit, self._limit)
        y = self._run([self._synthesis_head], latents, self._expand(latents, self._synthesis_head))
        batch, height, width, _ = y.shape
        x = y.new_empty(batch, 2 * height, 2 * width, self._upsample_2.bias.shape[1])
        expansion = Expansion(*self._synthesis_blocks[0].expand, torch.empty_like(x))
        scale = QualityScale(self._synthesis_modulation, quality)
        upsample_2(y, self._upsample_2, scale, self._limit, x, expansion)
        x = self._run(self._synthesis_blocks, x, expansion.out)
        to_pixels(_convolution(x, self._tail), self._tail_bias, pixels, top, left)

    def analysis(self, pixels: Tensor, quality: Tensor) -> Tensor:
        """g_a and the gain: uint8 pixels [B, H, W, 3], or [B, H, W, 1] of gray images, to scaled latents, float32
        [B, ceil(H / 16), ceil(W / 16), M].

        Past the lower and the right edge the last pixels go on. The pixels may be a part of larger images, as long as
        each of their rows lies in one piece.
        """
        batch, height, width = (pixels.shape[0], *(2 * ceil_div(side, LATENT_STRIDE) for side in pixels.shape[1:3]))
        weight, bias = self._down
        x = torch.empty(batch, height, width, weight.shape[1], dtype=self.dtype, device=pixels.device)
        expansion = Expansion(*self._analysis_blocks[0].expand, torch.empty_like(x))
        from_pixels(pixels, self._from_pixels, QualityScale(self._analysis_modulation, quality), x, expansion)
        x = self._run(self._analysis_blocks, x, expansion.out)
        x = self._bounded(_convolution(x, weight, stride=2).add_(bias))
        y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        tail = self._analysis_tail
        residual_block(self._expand(x, tail), x, tail.rest, self._limit, y, QualityScale(self._gain, quality))
        return y

    def hyper_analysis(self, y: Tensor, quality: Tensor) -> Tensor:
        """h_a of each tile alone, rounded: scaled latents float32 [B, h, w, M] to hyper latents int16
        [B, ceil(h / 4), ceil(w / 4), Z]. Past the lower and the right edge the last latents go on."""
        for axis in (1, 2):
            size = y.shape[axis]
            if beyond := -size % HYPER_STRIDE:
                y = y.index_select(axis, torch.arange(size + beyond, device=y.device).clamp_(max=size - 1))
        x = _convolution(torch.asinh(y).to(self.dtype), self._hyper_head)
        x = self._bounded(F.silu(x + self._hyper_head_bias.index_select(0, quality)[:, None, None]))
        weight, bias = self._hyper_down1
        x = self._bounded(F.silu(_convolution(x, weight, stride=2) + bias))
        weight, bias = self._hyper_down2
        z = _convolution(x, weight, stride=2) + bias
        return z.round_().clamp_(-ACTIVATION_MAX, ACTIVATION_MAX).to(torch.int16)

    def _bounded(self, x: Tensor) -> Tensor:
        """x, clamped in place; a kernel less where there is no limit."""
        return x.clamp_(-self._limit, self._limit) if self._limit < math.inf else x

    @staticmethod
    def _expand(x: Tensor, block: _Block) -> Tensor:
        """A block's first layer by itself."""
        expanded = torch.empty_like(x)
        expand(x, *block.expand, expanded)
        return expanded

    def _run(self, blocks: list[_Block], x: Tensor, expanded: Tensor) -> Tensor:
        """Residual blocks, one after the other, of x and what the first one's first layer made of it."""
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            out = torch.empty_like(x)
            if following is None:
                residual_block(expanded, x, block.rest, self._limit, out)
            else:
                expansion = Expansion(*following.expand, torch.empty_like(expanded))
                residual_block(expanded, x, block.rest, self._limit, out, expansion)
                expanded = expansion.out
            x = out
        return x


class _Block(NamedTuple):
    """A residual block's weights: its first layer's, which the kernel before it runs, and the others'."""

    expand: Layer
    rest: BlockWeights


class _Placement(NamedTuple):
    """Puts weights where the kernels want them, and how."""

    device: torch.device
    dtype: torch.dtype

    def factor(self, weight: Tensor) -> Tensor:
        """What activations are multiplied by, or added to by PyTorch, in their own type."""
        return weight.to(self.device, self.dtype).contiguous()

    def addend(self, bias: Tensor) -> Tensor:
        """What a kernel adds to its sums, or multiplies them by, in float32."""
        return bias.to(self.device, torch.float32).contiguous()

    def kernel(self, layer: nn.Conv2d) -> Tensor:
        """A dense convolution's weight, as PyTorch wants it for channels-last activations."""
        return layer.weight.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)

    def block(self, block: Block) -> _Block:
        return _Block(
            Layer(self.factor(block.expand.weight.flatten(1)), self.addend(_bias(block.expand))),
            BlockWeights(
                depthwise=self.addend(block.depthwise.weight.flatten(1).T),
                depthwise_bias=self.addend(_bias(block.depthwise)),
                project=self.factor(block.project.weight.flatten(1)),
                project_bias=self.addend(_bias(block.project)),
                gate=self.factor(block.gate.weight.flatten(1)),
                gate_bias=self.addend(_bias(block.gate)),
                merge=self.factor(block.merge.weight.flatten(1)),
                merge_bias=self.addend(_bias(block.merge)),
            ),
        )


def _bias(layer: nn.Conv2d) -> Tensor:
    if layer.bias is None:
        raise ValueError("a layer of the transforms has no bias")
    return layer.bias


def _rows(table: QualityTable) -> Tensor:
    """A quality table's vectors, one a quality: float32 [qualities, channels]."""
    quality = torch.arange(MIN_QUALITY, MAX_QUALITY + 1, device=table.points.device)
    return table(quality_position(quality.double()).float())


def _convolution(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """A dense convolution with zero padding and no bias: x [B, H, W, C], weight [outputs, C, k, k] in channels-last
    memory. Behind it a bias costs nothing where a kernel follows; inside it is a kernel of its own."""
    out = F.conv2d(x.permute(0, 3, 1, 2), weight, stride=stride, padding=weight.shape[-1] // 2)
    return out.permute(0, 2, 3, 1).contiguous()
