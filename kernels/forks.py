"""What a forked child finds: PyTorch on one thread, no lock that a thread of the parent holds, and no GPU.

OpenMP's threads, on which PyTorch computes, are not there in a child, which waits for them for ever as soon as an
operation is large enough to be shared out. On one thread nothing waits, as in the workers of PyTorch's DataLoader. A
child that wants more threads is to be spawned, or started by a fork server that has computed nothing.
"""

from __future__ import annotations

import os
import threading

import torch

from .errors import UnavailableError

_parent_had_gpu = False
_gpu_lost = False


def hold(lock: threading.Lock | threading.RLock) -> None:
    """Have every fork wait for a lock of the module's lifetime, so that no child finds it taken by a thread that the
    child does not have. Locks are taken in the opposite order of the calls: a lock that is taken within another one is
    to be given before it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def check_gpu() -> None:
    """Raises UnavailableError in a process that was forked from one that used a GPU: CUDA cannot be used here."""
    if _gpu_lost:
        raise UnavailableError(
            "a GPU that was used before a fork cannot be used in the child: start workers by 'spawn' or 'forkserver', "
            "or use device 'cpu' there"
        )


def _before() -> None:
    global _parent_had_gpu
    _parent_had_gpu = _gpu_lost or torch.cuda.is_initialized()


def _in_child() -> None:
    global _gpu_lost
    _gpu_lost = _parent_had_gpu
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
