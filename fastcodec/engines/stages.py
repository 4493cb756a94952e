"""The stages of coding, as a profile shows them: analysis, hyper, parameters, rans, synthesis, copies."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import record_function


def stage(name: str) -> AbstractContextManager[object]:
    """A context whose time PyTorch's profiler shows under this name; without a profiler it costs nothing.

    A bare `record_function` takes ten microseconds whether it is seen or not, as long as a kernel.
    """
    return record_function(name) if torch.autograd._profiler_enabled() else nullcontext()
