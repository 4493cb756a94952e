"""Pictures that tests draw, and how two are compared: each an array or an image of Pillow's."""

import numpy as np

from fastcodec import metrics


def difference(a, b) -> int:
    """The largest of any sample, in levels; b may be one level for all."""
    a, b = np.asarray(a).astype(int), np.asarray(b).astype(int)
    assert b.shape in ((), a.shape)
    return int(np.abs(a - b).max(initial=0))


def psnr(a, b) -> float:
    return metrics.psnr(np.asarray(a), np.asarray(b))


def drawing(height: int, width: int) -> np.ndarray:
    """Flat colours and sharp edges, which lossless coding serves best."""
    pixels = np.full((height, width, 3), (240, 240, 250), np.uint8)
    pixels[::9] = (0, 0, 160)
    pixels[height // 3 :, width // 2 :] = (255, 0, 0)
    return pixels
