"""The codec's calls that are under way, in all threads, so that a fork and the end of the process can wait for them.

A fork in the middle of another thread's call leaves the child with whatever lock that thread held, in this package or
in a library. And before Python 3.14 a daemon thread that is within a PyTorch operation when the interpreter ends takes
the process down (`terminate called without an active exception`): Python ends the thread where PyTorch allows no
unwinding. So both first let every other thread come to where it computes nothing: the end of its call, or `pause`
within one.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .errors import UnavailableError

# How long a fork, or the end of the process, waits for a thread that comes to no pause; and how long a thread that the
# end has stopped is kept before it is told. Mostly the process is gone by then, but something may wait for the thread.
_WAIT_SECONDS = 10.0

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Thread(threading.local):
    depth = 0  # of calls within calls


_thread = _Thread()
_changed = threading.Condition()
_running = 0  # threads within a call, those in `pause` left out
_closed_by: int | None = None  # the thread that forks or ends the process
_ending = False


def counted(function: _Function) -> _Function:
    """A function that computes, as one that forks and the end of the process wait for.

    Raises UnavailableError in a thread that calls it while the interpreter ends.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _under_way():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def pause() -> None:
    """Hold a thread within a call, if need be: it computes nothing here, and holds no lock."""
    global _running
    if _thread.depth and not _is_open():
        _leave()
        try:
            _enter()
        except UnavailableError:
            with _changed:
                _running += 1  # this thread is still within its call
            raise


@contextmanager
def _under_way() -> Iterator[None]:
    if _thread.depth == 0:
        _enter()
    _thread.depth += 1
    try:
        yield
    finally:
        _thread.depth -= 1
        if _thread.depth == 0:
            _leave()


def _enter() -> None:
    global _running
    with _changed:
        if not _changed.wait_for(_is_open, _WAIT_SECONDS) and _ending:
            raise UnavailableError("the interpreter is ending: no thread but the main one can use the codec any more")
        _running += 1


def _leave() -> None:
    global _running
    with _changed:
        _running -= 1
        _changed.notify_all()


def _is_open() -> bool:
    return _closed_by in (None, threading.get_ident())


def _close() -> None:
    """Wait until no other thread is within a call. `_changed` is held."""
    global _closed_by
    _changed.wait_for(_is_open, _WAIT_SECONDS)
    _closed_by = threading.get_ident()
    own = int(_thread.depth > 0)
    _changed.wait_for(lambda: _running <= own, _WAIT_SECONDS)


def _open() -> None:
    global _closed_by
    if not _ending:
        _closed_by = None
        _changed.notify_all()


def _before_fork() -> None:
    _changed.acquire()
    _close()


def _after_fork() -> None:
    _open()
    _changed.release()


def _in_child() -> None:
    global _changed, _running, _closed_by, _ending
    _changed = threading.Condition()  # the parent's threads wait at the other one
    _running, _closed_by, _ending = int(_thread.depth > 0), None, False


def _at_exit() -> None:
    global _ending
    with _changed:
        _ending = True
        _close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
atexit.register(_at_exit)
