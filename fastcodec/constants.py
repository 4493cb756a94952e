"""Numbers of the file format that more than one layer needs; docs/format.md lists them. Imports nothing."""

LATENT_STRIDE = 16  # pixels a latent
HYPER_STRIDE = 4  # latents a hyper latent
TILE_LATENTS = 64  # side of a tile, in latents
MIN_TILE_LATENTS = 16  # a remainder below this joins its neighbour
MIN_QUALITY, MAX_QUALITY = 1, 100
DEFAULT_QUALITY = 60  # no part of the format: what is taken where none is asked for
IDENTITY_BYTES = 6  # of a model's SHA-256
