"""Models: the default one (`swift`) and the systems of the papers (`zoo`), by name or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from ..errors import UnknownModelError
from .swift import release
from .zoo import checkpoints
from .zoo.base import CompressionModel

Model: TypeAlias = "release.Model | CompressionModel"


def load(name: str | Path = "swift", system: str | None = None) -> Model:
    """Load a model, on the CPU.

    name: a shipped model's name, or the path of a file: a released model's (.safetensors), what `save` wrote, or a
    checkpoint of CompressAI's. system: which one a checkpoint is of, where it does not tell.

    Raises ModelMismatchError for a name that this installation does not carry and for a file that is no released model,
    UnknownModelError for another file, UnsupportedError for more scales than the coder has tables, OSError for a file
    that cannot be read.
    """
    path = Path(name)
    if path.suffix == ".safetensors":
        return release.read_model(path)
    if path.suffix or (path.exists() and str(name) not in release.names()):
        return checkpoints.read(path, system)
    return release.load(str(name))


def save(model: Model, path: str | Path) -> None:
    """Write a model to a file that `load` takes. Raises UnknownModelError for what is no model of this package."""
    if isinstance(model, release.Model):
        release.copy_file(model, Path(path))
    elif isinstance(model, CompressionModel):
        checkpoints.save(model, path)
    else:
        raise UnknownModelError(f"{type(model).__name__} is no model of this package")
