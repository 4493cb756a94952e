"""Releases in groups of channels of any sizes, for tests: the newest release, its contexts reading all they can."""

import json
from pathlib import Path

import numpy as np
import torch

from fastcodec.models.swift import export
from fastcodec.models.swift import release as released
from fastcodec.models.swift.warm_start import regroup


def write_grouped(sizes: tuple[int, ...], folder: Path, photograph: np.ndarray) -> Path:
    """Makes the folder one of releases, with this model alone, whose path it returns. photograph: uint8, 64x256."""
    model = export.restore(released.weights_folder() / f"swift-{released.available()[0]}.safetensors")
    images = torch.from_numpy(photograph[:64, :256].copy()).permute(2, 0, 1)[None]
    model = regroup(model, sizes, images)
    torch.manual_seed(0)
    with torch.no_grad():
        for group, own in zip(model.groups[1:], model.config.group_channels[1:], strict=True):
            group.channel_context.weight.normal_(std=0.03)
            group.context.weight[:, -own.start :].normal_(std=0.03)
    path = folder / "grouped.safetensors"
    identity = export.export(model, path)
    (folder / "index.json").write_text(json.dumps({"swift": [identity]}))
    return path.rename(folder / f"swift-{identity}.safetensors")
