"""Bounds of the features, by proof: whatever the picture or the latents, no layer leaves half precision.

The limit of a model's features (`SwiftConfig.limit`) clamps what each residual block is given and what its gated
product, the only product of features, hands on. Between two clamps every layer is linear, up to SiLU, which never makes
a value larger. So a bound of a layer's inputs, channel by channel, gives one of its outputs: the sum of the weights'
magnitudes times those of the inputs, and the bias's. Checked are the values that the GPU keeps in half precision
(`engines/gpu_transforms.py`); what it has in float32 alone, such as the two factors of the gated product, is far inside
that type.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import UnsupportedError
from .network import Block, Convolution, QualityTable, Swift

if TYPE_CHECKING:
    from .release import Model

#: No feature of a release may be able to exceed it: half of fp16's range. The rest is for what rounding to fp16 adds.
LARGEST_FEATURE = 2.0**15
#: The largest latent that a file can hold: a symbol of 16 bits and a mean of 16 bits, in 1/16.
_LARGEST_LATENT = 2.0**15 + 2.0**11


def feature_bounds(model: Swift | Model, gain: Tensor, inverse_gain: Tensor) -> dict[str, float]:
    """The largest magnitude that each layer writes in half precision, by the layer's name in the model.

    A layer's values include what is added to them before they are stored: `project`'s the block's input, h_a.head's the
    quality's vector. A block by itself stands for its output; "latents", for what is decoded, behind the inverse gain
    and before it is clamped. gain and inverse_gain: [..., M], all that the model may use. Without a limit of the
    features, bounds are not finite.
    """
    limit = math.inf if model.config.limit is None else model.config.limit
    g_a, h_a, g_s = model.g_a, model.h_a, model.g_s
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        gain, inverse_gain = (_magnitude(values.double()) for values in (gain, inverse_gain))
        pixels = gain.new_full((192,), 0.5)
        x = found["g_a.head"] = _outputs(g_a.head, pixels) * _factor(g_a.modulation)
        for i, block in enumerate(g_a.blocks):
            x = _block(found, f"g_a.blocks.{i}", block, x, limit)
        found["g_a.down"] = _outputs(g_a.down, x)
        latents = _block(found, "g_a.tail", g_a.tail, found["g_a.down"].clamp(max=limit), limit)

        x = _outputs(h_a.head, torch.asinh(latents * gain)) + _magnitude(h_a.modulation.points.double())
        found["h_a.head"] = x
        x = found["h_a.down1"] = _outputs(h_a.down1, x.clamp(max=limit))
        found["h_a.down2"] = 4 * _outputs(h_a.down2, x.clamp(max=limit))

        found["latents"] = _LARGEST_LATENT * inverse_gain
        x = _block(found, "g_s.head", g_s.head, found["latents"].clamp(max=limit), limit)
        x = (_outputs(g_s.up, x).view(-1, 4).amax(1) * _factor(g_s.modulation)).clamp(max=limit)
        found["g_s.up"] = x  # float32 until it is clamped
        for i, block in enumerate(g_s.blocks):
            x = _block(found, f"g_s.blocks.{i}", block, x, limit)
        found["g_s.tail"] = _outputs(g_s.tail, x)
    return {name: float(bound.max()) for name, bound in found.items()}


def check_features(model: Swift | Model, gain: Tensor, inverse_gain: Tensor) -> None:
    """Raises UnsupportedError, naming the layer, where a feature might come near to the end of half precision."""
    for name, bound in feature_bounds(model, gain, inverse_gain).items():
        if not bound <= LARGEST_FEATURE:  # NaN, too
            raise UnsupportedError(
                f"{name} can reach {bound:.0f}, and features beyond {LARGEST_FEATURE:.0f} are too near to the end of "
                f"half precision (the model's limit of features is {model.config.limit})"
            )


def _block(found: dict[str, Tensor], name: str, block: Block, x: Tensor, limit: float) -> Tensor:
    """Adds a block's layers to `found`, its inputs being within x, and returns the bounds of its outputs."""
    expanded = found[f"{name}.expand"] = _outputs(block.expand, x)
    convolved = found[f"{name}.depthwise"] = _outputs(block.depthwise, expanded)
    found[f"{name}.project"] = x + _outputs(block.project, convolved)
    x = found[name] = torch.full_like(x, limit)
    return x


def _outputs(layer: Convolution, x: Tensor) -> Tensor:
    """Bounds of a convolution's outputs, its inputs being within x, a bound for each channel."""
    weight = layer.weight.double().abs().sum((2, 3))  # [outputs, inputs of a group]
    inputs = x[:, None] if layer.groups > 1 else x  # a group is a channel
    return (weight * inputs).sum(1) + layer.bias.double().abs()


def _factor(table: QualityTable) -> Tensor:
    """Bounds of 1 + table: between two of its points, a table is nowhere further from zero than at one of them."""
    return _magnitude(1 + table.points.double())


def _magnitude(rows: Tensor) -> Tensor:
    return rows.abs().reshape(-1, rows.shape[-1]).amax(0)
