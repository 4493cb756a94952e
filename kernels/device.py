"""One GPU, in CUDA's words and through PyTorch: its memory, copies, streams, events and graphs.

Nothing here waits for the GPU but `Fetch.wait`, `download`, `synchronize` and `graph`. All of it uses PyTorch's current
stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from . import forks
from .errors import UnavailableError


class Target:
    """A GPU that work is given to. There is one for each device: `cuda_target`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def use(self) -> AbstractContextManager[object]:
        """A context in which the device is the current one."""
        return torch.cuda.device(self.device)

    def _current_stream(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def stream_handle(self) -> int:
        """The current stream as the driver knows it."""
        return self._current_stream().cuda_stream

    def new_stream(self) -> torch.cuda.Stream:
        """A stream beside the others."""
        return torch.cuda.Stream(self.device)

    def stream(self, stream: torch.cuda.Stream) -> AbstractContextManager[object]:
        """A context in which a stream is the current one."""
        return torch.cuda.stream(stream)

    def synchronize(self) -> None:
        """Waits for what the current stream was given, and for no other."""
        self._current_stream().synchronize()

    def record_event(self) -> torch.cuda.Event:
        """An event at this point of the current stream."""
        event = torch.cuda.Event()
        event.record(self._current_stream())
        return event

    def wait_event(self, event: torch.cuda.Event) -> None:
        """Has what the current stream is given from here on start when an event has come. The host does not wait."""
        self._current_stream().wait_event(event)

    def record_stream(self, tensor: Tensor) -> None:
        """Keeps the memory of another stream's tensor until the current stream has used it."""
        tensor.record_stream(self._current_stream())

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured into a CUDA graph."""
        return torch.cuda.is_current_stream_capturing()

    def graph(self, launch: Callable[[], None]) -> Callable[[], None]:
        """What `launch` enqueues as a CUDA graph: a function that enqueues all of it at once.

        `launch` has been called before, so that nothing is left to prepare, and a stream of `new_stream` is the current
        one. Waits for the GPU.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._current_stream(), capture_error_mode="thread_local"):
            launch()
        return graph.replay

    def staging(self, *shape: int) -> Tensor:
        """Pinned bytes on the host, which the device can copy from; not to be asked for during capture."""
        return torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=True)

    def upload(self, size: int, write: Callable[[int], object], staging: Tensor | None = None) -> Tensor:
        """`size` bytes on the device, written at an address on the host (in `staging`); the copy is not waited for."""
        staging = self.staging(size) if staging is None else staging
        write(staging.data_ptr())
        # PyTorch does not give pinned memory away again before the copies from it have ended.
        return staging.to(self.device, non_blocking=True)

    def fetch(self, *data: Tensor) -> Fetch:
        """Enqueues the copies of tensors to the host."""
        copies = [torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True) for tensor in data]
        for copy, tensor in zip(copies, data, strict=True):
            copy.copy_(tensor, non_blocking=True)
        return Fetch(copies, self.record_event().synchronize)

    def download(self, data: Tensor) -> np.ndarray:
        """A tensor's values; waits for everything before it on the stream."""
        return self.fetch(data).wait()[0]


class Fetch:
    """Tensors on their way to the host. Nothing but `wait` waits for the GPU."""

    def __init__(self, copies: list[Tensor], arrived: Callable[[], None]) -> None:
        self._copies, self._arrived = copies, arrived

    def wait(self) -> list[np.ndarray]:
        """What has arrived, in the order in which it was asked for."""
        self._arrived()
        return [copy.numpy() for copy in self._copies]


_lock = threading.Lock()
forks.hold(_lock)
_targets: dict[torch.device, Target] = {}


def cuda_target(device: torch.device) -> Target:
    """The target of a CUDA device.

    Raises:
        UnavailableError: another kind of device, or no such GPU.
    """
    if device.type != "cuda":
        raise UnavailableError(f"the coder does not run on {device.type!r} tensors: move them to the CPU or to a GPU")
    forks.check_gpu()
    if not torch.cuda.is_available():
        raise UnavailableError("PyTorch finds no CUDA device")
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    with _lock:
        if device not in _targets:
            with torch.cuda.device(device):
                torch.cuda.current_stream(device)  # PyTorch makes the device's context
            _targets[device] = Target(device)
        return _targets[device]


def target_of(device: torch.device) -> Target | None:
    """The GPU that works on tensors of a device; None for those of the CPU. Raises as `cuda_target`."""
    return None if device.type == "cpu" else cuda_target(device)
