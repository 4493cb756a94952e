"""The GPU's program on the CPU: Triton's kernels in their interpreter, and the CUDA coder in the host shim."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from simulation import simulated

from fastcodec.engines import gpu
from fastcodec.kernels.triton.common import INTERPRETED


@contextmanager
def simulated_gpu(driver: Path) -> Iterator[None]:
    """Within it, "cuda" is the simulation for a codec that is loaded. driver: the fixture `simulator`."""
    if not INTERPRETED:
        pytest.skip("Triton's interpreter is off: there is a GPU")
    with simulated(driver) as target, pytest.MonkeyPatch.context() as patch:
        # Half precision is slow on a CPU, and its results are the transforms' own tests' business.
        made = target.device, lambda model: gpu.GpuEngine(model, target, torch.float32)
        patch.setattr(gpu, "engines", lambda device: made)
        yield
