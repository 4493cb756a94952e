"""What the studies that train share: a learning-rate schedule, and tensors that are kept in a cache folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastcodec.files import replacing

CONSTANT_UNTIL = 0.4  # of a training; then the learning rate falls


def rate_factor(step: int, warm_up: int, progress: float) -> float:
    """Learning-rate schedule: linear warm-up in steps, constant, then a cosine to 1 %; progress: 0..1."""
    fall = max(0.0, progress - CONSTANT_UNTIL) / (1 - CONSTANT_UNTIL)
    return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors so that the file is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        torch.save(state, stream)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The tensors of a file, which are made first where it is not there yet."""
    if not path.exists():
        save(path, make())
    return torch.load(path, weights_only=True)
