"""Numbers of the file format that more than one layer needs, which docs/format.md lists; the check of a quality."""

import numbers

LATENT_STRIDE = 16  # pixels a latent
HYPER_STRIDE = 4  # latents a hyper latent
TILE_LATENTS = 64  # side of a tile, in latents
MIN_TILE_LATENTS = 16  # a remainder below this joins its neighbour
MIN_QUALITY, MAX_QUALITY = 1, 100
DEFAULT_QUALITY = 60  # no part of the format: what is taken where none is asked for
IDENTITY_BYTES = 6  # of a model's SHA-256


def checked_quality(quality: int) -> int:
    """The quality as an int. ValueError unless it is a whole number, of whatever type, from 1 to 100."""
    given: object = quality  # NumPy's integers and whole floats are as good
    known = isinstance(given, numbers.Real) and not isinstance(given, bool)
    if not known or not MIN_QUALITY <= quality <= MAX_QUALITY or quality != int(quality):
        raise ValueError(f"quality {quality!r} is not an integer from {MIN_QUALITY} to {MAX_QUALITY}")
    return int(quality)
