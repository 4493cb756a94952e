"""Files for the command line: .fic files, standard input and output."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..container import MAGIC
from ..errors import ImageError, NotAFicFileError
from ..files import check_regular

# `-` on the command line: known by identity, as a file may have such a name.
STDIN, STDOUT = Path("<stdin>"), Path("<stdout>")


def read_fic(path: Path) -> bytes:
    """The bytes of a .fic file. What does not begin as one is refused before the rest of it is read."""
    check_regular(path)
    with open(path, "rb") as stream:
        head = stream.read(len(MAGIC))
        if head != MAGIC:
            raise NotAFicFileError("not a .fic file" if head else "the file is empty")
        return head + stream.read()


def read_stdin(head: bytes = b"") -> bytes:
    """All of standard input. What does not begin with `head` is refused before the rest of it is read.

    Raises ImageError for a closed one and for a terminal, NotAFicFileError for another head.
    """
    if sys.stdin is None:
        raise ImageError("standard input is closed")
    if sys.stdin.isatty():
        raise ImageError("standard input is a terminal: redirect a file to it")
    begin = sys.stdin.buffer.read(len(head))
    if begin != head:
        raise NotAFicFileError("not a .fic file" if begin else "the input is empty")
    return begin + sys.stdin.buffer.read()


def write_stdout(data: bytes) -> None:
    """Write to standard output, to the end. Raises OSError; BrokenPipeError if its reader has gone."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What could not be written would be tried again, and fail again, as the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, str(STDOUT)) from error
