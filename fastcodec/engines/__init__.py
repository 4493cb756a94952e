"""The engines, and which of them a device's name asks for."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import TypeAlias

import torch

from ..errors import UnavailableError
from ..kernels import rans
from ..models.swift.release import Model
from . import cpu
from .engine import Engine

DeviceLike: TypeAlias = "str | int | torch.device | None"


def device_of(device: DeviceLike) -> torch.device:
    """The device of a name, as `Codec.load` takes it. Raises what that raises."""
    return engines_of(device)[0]


def engines_of(device: DeviceLike) -> tuple[torch.device, Callable[[Model], Engine]]:
    """The device of a name, and what makes engines for released models on it. Raises what `Codec.load` raises."""
    name = _device_name(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and not rans.cuda_status() else "cpu"
    if name == "cpu":
        return torch.device("cpu"), cpu.CpuEngine
    try:
        from . import gpu
    except ModuleNotFoundError as error:
        raise UnavailableError(f"a GPU needs Triton, which is not installed: {error}") from error
    return gpu.engines(name)


def _device_name(device: DeviceLike) -> str:
    """One of the names "auto", "cpu", "cuda" and "cuda:N"."""
    allowed = "use 'auto' (or None), 'cpu', 'cuda', 'cuda:N', a torch.device of these, or a GPU's number N"
    if device is None:
        return "auto"
    if isinstance(device, torch.device | str):
        name = "cpu" if str(device) == "cpu:0" else str(device)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise ValueError(f"device {device!r}: {allowed}")
        return name
    try:
        if isinstance(device, bool):
            raise TypeError
        number = operator.index(device)
    except TypeError:
        raise TypeError(f"a device is no {type(device).__name__}: {allowed}") from None
    if number < 0:
        raise ValueError(f"device {device!r}: {allowed}")
    return f"cuda:{number}"
