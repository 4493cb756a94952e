"""The quality that users give."""

from __future__ import annotations

import numbers

from .constants import MAX_QUALITY, MIN_QUALITY


def checked_quality(quality: int) -> int:
    """The quality as an int. ValueError unless it is a whole number, of whatever type, from 1 to 100."""
    given: object = quality  # NumPy's integers and whole floats are as good
    known = isinstance(given, numbers.Real) and not isinstance(given, bool)
    if not known or not MIN_QUALITY <= quality <= MAX_QUALITY or quality != int(quality):
        raise ValueError(f"quality {quality!r} is not an integer from {MIN_QUALITY} to {MAX_QUALITY}")
    return int(quality)
