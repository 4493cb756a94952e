"""Releases that tests make of the newest one: in other groups of channels, or with another limit of features."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastcodec.models.swift import export
from fastcodec.models.swift import release as released
from fastcodec.models.swift.warm_start import regroup


def newest() -> Path:
    return released.weights_folder() / f"swift-{released.available()[0]}.safetensors"


def limited(limit: float | None) -> released.Model:
    """The released model with another limit of its features."""
    model = released.read_model(newest())
    for transform in (model.g_a, model.h_a, model.g_s):
        for module in transform.modules():
            if hasattr(module, "limit"):
                module.limit = limit
    return replace(model, config=replace(model.config, limit=limit))


def write_grouped(sizes: tuple[int, ...], folder: Path, photograph: np.ndarray) -> Path:
    """Makes the folder one of releases, with this model alone, whose path it returns: it has groups of these sizes, and
    its contexts read all they can. photograph: uint8, 64x256."""
    model = export.restore(newest())
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
