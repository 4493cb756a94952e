"""The engines' stages as a profiler shows them: analysis, hyper, parameters, rans, synthesis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

from .. import _calls


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A range of this name under `torch.profiler`; a thread may be held where it begins."""
    _calls.pause()
    # `record_function` takes 5 to 30 microseconds though nothing profiles, and a tile has twenty stages.
    if not torch.autograd._profiler_enabled():
        yield
        return
    with record_function(name):
        yield
