"""Items of a batch: which go together, and errors that name the item that they are about."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TypeVar

from .errors import FastcodecError, UnavailableError, name_in, within

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """The function's results of the items of a batch; what it raises names the item."""
    out = []
    for number, item in enumerate(items):
        with within(_name(number)):
            out.append(function(item))
    return out


def check_alike(kinds: Sequence[object]) -> None:
    """ValueError, naming the first item that differs, unless there are items and all are of one kind."""
    if not kinds:
        raise ValueError("files of one size and model are needed, and there are none")
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(f"files of one size and model are needed, and item {number} differs from item 0 in these")


@contextmanager
def of_items(group: Sequence[int], alone: Callable[[int], object]) -> Iterator[None]:
    """A context: what is raised within it names the item of a batch that it is about.

    An engine that codes a group at once does not tell which of it was at fault, so `alone` codes one after the other.
    """
    try:
        yield
    except (FastcodecError, MemoryError) as error:
        if isinstance(error, FastcodecError) and not isinstance(error, UnavailableError):
            for number in group:
                with within(_name(number)):
                    alone(number)
        name_in(error, " and ".join(map(_name, group)) if len(group) < 3 else f"items {', '.join(map(str, group))}")
        raise


def batches(keys: Sequence[Hashable], weights: Sequence[int], most: int) -> list[list[int]]:
    """Indexes of equal keys together, in groups whose weights sum to `most` or less (or of one item)."""
    by_key: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        by_key.setdefault(key, []).append(i)
    out = []
    for members in by_key.values():
        size = max(1, most // max(1, weights[members[0]]))  # of one key, all weigh the same
        out += [members[i : i + size] for i in range(0, len(members), size)]
    return out


def neighbours(keys: Sequence[object]) -> list[list[int]]:
    """Indexes of equal keys that follow one another."""
    return [list(group) for _, group in groupby(range(len(keys)), key=keys.__getitem__)]


def _name(number: int) -> str:
    return f"item {number}"
