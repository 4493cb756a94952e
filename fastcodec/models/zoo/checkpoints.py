"""Model files, and models from elsewhere: CompressAI's networks, their state dicts and checkpoints, as systems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UnknownModelError, UnsupportedError
from ...files import replacing
from ...kernels import rans64
from ...kernels.rans.tables import MAX_TABLES
from .. import zoo
from .base import CompressionModel
from .entropy_bottleneck import EntropyBottleneck
from .gaussian_conditional import GaussianConditional
from .rounded_gaussian import RoundedGaussianConditional

#: CompressAI's classes of image models, by our names.
CLASSES = {
    "FactorizedPrior": "bmshj2018-factorized",
    "FactorizedPriorReLU": "bmshj2018-factorized-relu",
    "ScaleHyperprior": "bmshj2018-hyperprior",
    "MeanScaleHyperprior": "mbt2018-mean",
    "JointAutoregressiveHierarchicalPriors": "mbt2018",
    "Cheng2020Anchor": "cheng2020-serial",
    "Cheng2020Attention": "cheng2020-serial-attention",
    "Cheng2020AnchorCheckerboard": "cheng2020-checkerboard",
    "Elic2022Official": "elic2022-official",
    "Elic2022Chandelier": "elic2022-chandelier",
    "ScaleHyperpriorVbr": "bmshj2018-hyperprior-vbr",
    "MeanScaleHyperpriorVbr": "mbt2018-mean-vbr",
    "JointAutoregressiveHierarchicalPriorsVbr": "mbt2018-vbr",
}
#: CompressAI's names of systems that are called otherwise here.
_NAMES = {
    "cheng2020-anchor": "cheng2020-serial",
    "cheng2020-attn": "cheng2020-serial-attention",
    "cheng2020-anchor-checkerboard": "cheng2020-checkerboard",
}
# Where a file says what it is.
_FACTS = "fastcodec"
# Switches of the variable-rate classes that no state dict tells, and the setting of the published models.
_SWITCHES = {"no_quantoffset": False, "ste_recursive": True, "scl2ctx": True}


def from_network(model: nn.Module, name: str | None = None) -> CompressionModel:
    """The system of an instance of one of CompressAI's classes, also in DataParallel and the like; weights are copied.

    Raises UnknownModelError for another class, UnsupportedError for a variable-rate model with switches set that no
    published one has, and what `system_of` raises.
    """
    model = _unwrapped(model)
    known = CLASSES.get(type(model).__name__) if type(model).__module__.startswith("compressai.") else None
    if known is None and name is None:
        raise UnknownModelError(
            f"{type(model).__module__}.{type(model).__qualname__} is none of CompressAI's {', '.join(CLASSES)}; "
            "if its layers are those of a system, say name="
        )
    for switch, setting in _SWITCHES.items():
        if getattr(model, switch, setting) != setting:
            raise UnsupportedError(f"{switch}={not setting} is not supported, only {setting}")
    return system_of(model.state_dict(), name or known)


def system_of(state: Mapping[str, Any], name: str | None = None) -> CompressionModel:
    """The system of a state dict, or of a checkpoint that has one in it.

    Raises UnknownModelError for another dictionary, UnsupportedError for more scales than the coder has tables.
    """
    facts: Mapping[str, Any] = {}
    if "state_dict" in state:
        facts, state = state.get(_FACTS, facts), state["state_dict"]
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(key, str) and isinstance(part, Tensor) for key, part in state.items())
    ):
        raise UnknownModelError("this is no state dict: it has other things than named tensors in it, or nothing")
    if not isinstance(facts, Mapping):
        raise UnknownModelError("it does not say which system it is of")
    name = name or facts.get("system")
    if name is None and (name := recognise(state)) is None:
        raise UnknownModelError(
            f"a state dict of no system of the zoo ({', '.join(zoo.SYSTEMS)}), or of one that must be named: name="
        )
    name = _NAMES.get(str(name), str(name))
    if name not in zoo.SYSTEMS:
        raise UnknownModelError(f"no system named {name!r}; there are {', '.join([*zoo.SYSTEMS, *_NAMES])}")
    device = next(iter(state.values())).device
    try:
        system = zoo.load(name, state, **facts.get("options", {}))
        for part in system.modules():
            if isinstance(part, EntropyBottleneck | GaussianConditional):
                _check_tables(part)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UnknownModelError(f"not the weights of {name}: {error}") from error
    for part in system.modules():
        if isinstance(part, GaussianConditional) and (scales := part.scale_table.numel()) > MAX_TABLES:
            raise UnsupportedError(f"{scales} scales: the coder takes {MAX_TABLES} tables")
    return system.to(device)


def _check_tables(part: EntropyBottleneck | GaussianConditional) -> None:
    """ValueError for tables that cannot code, or not everything: better here than at an image, or its decoder."""
    wanted = part.channels if isinstance(part, EntropyBottleneck) else part.scale_table.numel()
    given = rans64.CdfTables.from_matrix(*part.cdfs).count
    coded = sum(tables.count for tables in part.table_sets())
    if not given == coded == wanted:
        raise ValueError(f"{wanted} tables are needed, not {given}, of which the coder has {coded}")


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The system whose parameters have these names and shapes, and its context these taps; None if there is none.

    A random-mask supernet is taken for the system that has its mask, and an integer system is not recognised: their
    files say what they are.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for name, system in zoo.SYSTEMS.items():
        try:
            with torch.device("meta"):
                system.model.from_shapes(plain).load_state_dict(plain, assign=True)
        except (KeyError, IndexError, ValueError, RuntimeError):
            continue
        return name
    return None


def save(model: CompressionModel, path: str | Path) -> None:
    """Write a system to a file: its state dict, in CompressAI's names, beside its name and options."""
    names = [name for name, system in zoo.SYSTEMS.items() if type(model) is system.model]
    if not names:
        raise UnknownModelError(f"{type(model).__name__} is no system of the zoo")
    rounded = isinstance(getattr(model, "gaussian_conditional", None), RoundedGaussianConditional)
    facts = {"system": names[0], "options": {"rounding": "latents"} if rounded else {}}
    with replacing(Path(path)) as stream:
        torch.save({_FACTS: facts, "state_dict": model.state_dict()}, stream)


def read(path: str | Path, name: str | None = None) -> CompressionModel:
    """The system in a file of `save`, or in a checkpoint of CompressAI's (.pth, .pth.tar), on the CPU.

    Only tensors and plain data are read, no code is run. Raises UnknownModelError for another file, OSError for one
    that cannot be read, UnsupportedError as `system_of`.
    """
    try:
        with open(path, "rb") as stream:
            state = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes are, PyTorch has an error of its own for it
        # PyTorch's own advice would be to let the file run code.
        raise UnknownModelError(f"{path} is no model file, or has other things than tensors in it") from error
    try:
        if not isinstance(state, Mapping):
            raise UnknownModelError(f"a {type(state).__name__}, not a state dict")
        return system_of(state, name)
    except UnknownModelError as error:
        raise UnknownModelError(f"{path}: {error}") from None


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model in DataParallel, DistributedDataParallel or torch.compile."""
    for inner in ("_orig_mod", "module"):
        if isinstance(getattr(model, inner, None), nn.Module) and type(model).__module__.startswith("torch."):
            return _unwrapped(getattr(model, inner))
    return model
