"""Images in folders. Imports nothing."""

from __future__ import annotations

from pathlib import Path

# Suffixes of the images in a folder; a file that is named may have any.
# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".jp2", ".j2k", ".qoi", ".dds", ".psd", ".heic", ".heif",
})
# fmt: on


def image_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The images directly in a folder, or anywhere below it, by their names' suffixes: sorted, without hidden ones.

    Of what is no folder, itself.
    """
    if not folder.is_dir():
        return [folder]
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
