"""A trained `Swift` to its released form, and back.

`export` writes what `release.py` reads; `restore` makes a network of it that training goes on with.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...constants import MAX_QUALITY, MIN_QUALITY
from ...kernels.rans import TableSet
from .bounds import check_features
from .entropy_model import entropy_layers, export_entropy_side
from .network import QualityTable, Swift, SwiftConfig, quality_position
from .release import (
    LATENT_TABLES,
    PRIOR_TABLES,
    check_latent_tables,
    config_of,
    hyper_tables,
    identity,
    part_of,
    read_file,
)


def export(model: Swift, path: Path, *, about: dict[str, str] | None = None) -> str:
    """Write the released form of a trained model; returns its identity in hex.

    about: facts for the file's metadata (training steps and the like). Raises ExactnessError where the integer side
    cannot be proved exact, UnsupportedError where features cannot be proved to stay inside half precision.
    """
    tensors = {f"entropy.{name}": tensor for name, tensor in export_entropy_side(model).items()}
    for part in ("g_a", "h_a", "g_s"):
        for name, tensor in getattr(model, part).state_dict().items():
            tensors[f"{part}.{name}"] = tensor.to(torch.float16)
    for name, tensor in model.prior.state_dict().items():
        tensors[f"prior.{name}"] = tensor.float()
    t = quality_position(torch.arange(MIN_QUALITY, MAX_QUALITY + 1, dtype=torch.float64, device="cpu")).float()
    with torch.no_grad():
        tensors["gain"] = torch.exp(model.log_gain(t))
        tensors["inverse_gain"] = torch.exp(model.log_inverse_gain(t))
    check_features(model, tensors["gain"], tensors["inverse_gain"])
    tensors[PRIOR_TABLES] = _stored(hyper_tables(model.prior))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"name": "swift", "config": json.dumps(asdict(model.config)), **(about or {})}
    save_file(tensors, path, metadata=metadata)
    return identity(tensors, metadata["config"])


def with_latent_tables(release: Path, tables: TableSet, path: Path) -> str:
    """Write a release again, its latents coded with other tables, 64 with skip; returns its identity in hex."""
    check_latent_tables(tables)
    metadata, tensors = read_file(release)
    tensors[LATENT_TABLES] = _stored(tables)
    save_file(tensors, path, metadata=metadata)
    return identity(tensors, metadata["config"])


def _stored(tables: TableSet) -> Tensor:
    return torch.frombuffer(bytearray(tables.to_bytes()), dtype=torch.uint8)


def restore(path: Path) -> Swift:
    """A trainable `Swift` from a released file: `export` undone, up to the rounding of weights to float16 and int8."""
    metadata, tensors = read_file(path)
    # Whatever the release was trained with, training goes on with features that cannot blow up.
    config = replace(config_of(metadata["config"]), limit=SwiftConfig.limit)
    entropy = part_of(tensors, "entropy.")
    with torch.device("cpu"):
        model = Swift(config, entropy["context_shift"]).float()
    for part in ("g_a", "h_a", "g_s", "prior"):
        getattr(model, part).load_state_dict({k: v.float() for k, v in part_of(tensors, f"{part}.").items()})
    t = quality_position(torch.arange(MIN_QUALITY, MAX_QUALITY + 1, dtype=torch.float64, device="cpu"))
    with torch.no_grad():
        model.log_gain.points.copy_(_fit_points(t, config, tensors["gain"].double().log()))
        model.log_inverse_gain.points.copy_(_fit_points(t, config, tensors["inverse_gain"].double().log()))
        for name, layer in entropy_layers(model).items():
            weight, bias, shift = (entropy[f"{name}.{part}"] for part in ("weight", "bias", "shift"))
            scale = torch.exp2((shift - layer.input_bits + layer.output.bits).double())
            bias = bias.double() / (scale * 2.0**layer.input_bits) / layer.gain
            if bias.dim() > 1:  # a row a quality: all of it goes into the quality's table
                (group,) = (group for group in model.groups if group.first is layer)
                group.quality_bias.points.copy_(_fit_points(t, config, bias))
                bias = torch.zeros_like(bias[0])
            layer.bias.copy_(bias)
            weight = (weight.double() / scale[:, None] / layer.gain[:, None]).float()
            if layer.kernel > 1:
                weight = weight.view(len(weight), layer.kernel, layer.kernel, -1).permute(0, 3, 1, 2)
            layer.weight.copy_(weight)
    return model


def _fit_points(t: Tensor, config: SwiftConfig, rows: Tensor) -> Tensor:
    """The anchor vectors of a `QualityTable` whose interpolation gives `rows`, one a quality, by least squares."""
    with torch.device("cpu"):
        table = QualityTable(config.quality_points, config.quality_points).double()
    with torch.no_grad():
        table.points.copy_(torch.eye(config.quality_points, dtype=torch.float64, device="cpu"))
        return torch.linalg.lstsq(table(t), rows).solution
