"""Sources of the files in an output folder: `.fastcodec.jsonl` in it.

A repeated command skips what is done, and "done" means: made from this very source, with these settings. A file at the
right place does not tell. So for each output a line of JSON is appended that says so, in one write; the last line of
an output counts. Whatever is wrong with this file (deleted, damaged, lines lost or doubled by another run) costs time
and nothing else: an output that it does not know is made again and compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..batch import folded
from ..files import check_regular, replacing

NAME = ".fastcodec.jsonl"
_STALE = 1000  # lines that no longer count, from which on the file may be written anew


@dataclass(frozen=True)
class Made:
    """The making of an output: its source and settings.

    source: the path from the output's folder. size, mtime_ns, ctime_ns, sha256: the source's, as it was read.
    settings: all that decides what is written, in JSON's types.
    """

    source: str
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, source: Path, folder: Path, settings: dict[str, Any]) -> Made:
        """Reads the whole source. Raises what `check_regular` raises."""
        check_regular(source)
        facts = source.stat()
        with open(source, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(_from_folder(source, folder), *_stamp(facts), sha256, settings)

    def looks_like(self, source: Path, folder: Path) -> bool:
        """Whether path, size and times are the same."""
        return self.is_named(source, folder) and _stamp(source.stat()) == (self.size, self.mtime_ns, self.ctime_ns)

    def is_named(self, source: Path, folder: Path) -> bool:
        """Whether it was made of a file of this path."""
        return self.source == _from_folder(source, folder)


class History:
    """The record of one output folder; threads may share it."""

    def __init__(self, folder: Path):
        self._path, self._lock = folder / NAME, threading.Lock()
        self._made: dict[str, tuple[tuple[int, int], Made]] = {}  # by output: its size and time, and that
        self._names: dict[str, str] = {}  # of what lay in the folder at first, by their folded forms
        self._end = b""  # what must precede the next line
        try:
            self._names = {folded(name): name for name in os.listdir(folder)}
            lines = self._path.read_bytes().split(b"\n") if self._path.is_file() else [b""]
        except OSError:
            return
        self._end = b"\n" if lines.pop() else b""  # a line that was cut off
        for line in lines:
            if (entry := _parse(line)) is not None:
                self._made[entry[0]] = entry[1:]
        if len(lines) > 2 * len(self._made) + _STALE:
            self._rewrite(lines)

    def find(self, output: Path) -> Made | None:
        """The making of an output that is still as it was written; None if that is not known."""
        with self._lock:
            found = self._made.get(output.name) or self._made.get(self._names.get(folded(output.name), ""))
        facts = output.stat()
        return found[1] if found is not None and found[0] == (facts.st_size, facts.st_mtime_ns) else None

    def alike(self, output: Path, source: Path) -> str | None:
        """The name of another file of the folder that many file systems would take for this output.

        None too if its source's whole name is like this one's: what these systems cannot tell apart is no news then.
        """
        other = self._names.get(folded(output.name), output.name)
        if other in self._made and folded(os.path.basename(self._made[other][1].source)) == folded(source.name):
            return None
        return None if other == output.name else other

    def add(self, output: Path, made: Made) -> None:
        """Take note of an output. Raises OSError."""
        facts = output.stat()
        entry = {"output": output.name, "bytes": facts.st_size, "time": facts.st_mtime_ns, **asdict(made)}
        line = json.dumps(entry).encode() + b"\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with self._lock:
            self._made[output.name] = (facts.st_size, facts.st_mtime_ns), made
            descriptor = os.open(self._path, flags, 0o666)
            try:
                os.write(descriptor, self._end + line)
                self._end = b""
            finally:
                os.close(descriptor)

    def _rewrite(self, lines: list[bytes]) -> None:
        last = {entry[0]: line for line in lines if (entry := _parse(line)) is not None}
        try:
            with replacing(self._path) as stream:
                stream.writelines(line + b"\n" for line in last.values())
        except OSError:
            return  # it stays as it is
        self._end = b""


def _parse(line: bytes) -> tuple[str, tuple[int, int], Made] | None:
    """The output's name, its size and time, and its making; None for a line that does not say so."""
    try:
        entry = json.loads(line)
        name, stamp = entry.pop("output"), (entry.pop("bytes"), entry.pop("time"))
        made = Made(**entry)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    texts = isinstance(name, str) and isinstance(made.source, str) and isinstance(made.settings, dict)
    return (name, stamp, made) if texts else None


def _stamp(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _from_folder(path: Path, folder: Path) -> str:
    path_text, folder_text = os.path.realpath(path), os.path.realpath(folder)
    try:
        return os.path.relpath(path_text, folder_text)
    except ValueError:  # another drive of Windows
        return path_text
