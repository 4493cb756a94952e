"""A GPU that is the CPU: the coder's CUDA kernels in the host shim (cuda_shim/), in the CPU coder's place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastcodec.kernels import device
from fastcodec.kernels.device import Fetch, Target
from fastcodec.kernels.rans import _cuda


class SimulatedTarget(Target):
    """Device memory is the CPU's, and all is done when a call returns."""

    def use(self):
        return nullcontext()

    def stream_handle(self) -> int:
        return 0

    def new_stream(self) -> None:
        return None

    def stream(self, stream: None):
        return nullcontext()

    def synchronize(self) -> None:
        pass

    def record_event(self) -> None:
        return None

    def wait_event(self, event: None) -> None:
        pass

    def record_stream(self, tensor: Tensor) -> None:
        pass

    def is_capturing(self) -> bool:
        return False

    def graph(self, launch: Callable[[], None]) -> Callable[[], None]:
        return launch

    def staging(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device="cpu")

    def upload(self, size: int, write: Callable[[int], object], staging: Tensor | None = None) -> Tensor:
        staging = self.staging(size) if staging is None else staging
        write(staging.data_ptr())
        return staging.clone()

    def fetch(self, *data: Tensor) -> Fetch:
        return Fetch([tensor.clone() for tensor in data], lambda: None)


@cache
def _target(driver: Path) -> SimulatedTarget:
    target = SimulatedTarget(torch.device("cpu"))
    _cuda._modules[target] = _cuda.open_module(str(driver), b"the shim has its kernels")
    return target


@contextmanager
def _of_cpu_tensors(target: SimulatedTarget | None) -> Iterator[SimulatedTarget | None]:
    before = device.target_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "target_of", lambda d: target if d.type == "cpu" else before(d))
        yield target


def simulated(driver: Path):
    """Within it, tensors of the CPU go to the kernels in the host shim instead of the CPU coder: gives the target."""
    return _of_cpu_tensors(_target(driver))


def by_cpu():
    """Within it, the CPU coder codes tensors of the CPU, in a simulation too."""
    return _of_cpu_tensors(None)
