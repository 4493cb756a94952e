"""The systems that the checkerboard paper builds on and compares with, and CompressAI's image models, on real files.

    model = zoo.create("mbt2018-checkerboard", quality=3)      # N and M of that quality, untrained
    model = zoo.load("mbt2018-mean", torch.load("mbt2018-mean-3.pth"))   # CompressAI's checkpoints, as they are
    codec = fastcodec.Codec(model)
    blob = codec.encode(image)
    image = codec.decode(blob)

`fastcodec.from_compressai` makes a codec of CompressAI's models in one step. docs/zoo.md lists all systems
and says what is the same as in CompressAI and what is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .balle2017 import Balle2017
from .balle2018 import FactorizedPrior, FactorizedPriorReLU, ScaleHyperprior
from .base import Compressed, CompressionModel
from .cheng2020 import (
    Cheng2020,
    Cheng2020Attention,
    Cheng2020Checkerboard,
    Cheng2020CheckerboardAttention,
    Cheng2020CheckerboardMixture,
    Cheng2020CheckerboardMixtureAttention,
    Cheng2020Mixture,
    Cheng2020MixtureAttention,
)
from .he2021 import Checkerboard, RandomMask
from .he2022 import Elic2022, Elic2022Chandelier
from .integerize import skeleton
from .kamisli2024 import JointAutoregressiveVariableRate, MeanScaleHyperpriorVariableRate, ScaleHyperpriorVariableRate
from .minnen2018 import JointAutoregressive, MeanScaleHyperprior

__all__ = ["SYSTEMS", "Compressed", "CompressionModel", "System", "create", "load"]


class System(NamedTuple):
    """A class and its channels: (N, M), or (N,) where M is N, for the qualities from 1 on."""

    model: type[CompressionModel]
    channels: tuple[tuple[int, ...], ...]


# N and M by quality, as CompressAI's zoo has them: more channels from where the rate needs them.
_SMALL, _EQUAL, _LARGE = (128, 192), (192, 192), (192, 320)
_CHENG = (*[(128,)] * 3, *[(192,)] * 3)

SYSTEMS = {
    "bls2017": System(Balle2017, (*[(128,)] * 5, *[(192,)] * 3)),
    "bmshj2018-factorized": System(FactorizedPrior, (*[_SMALL] * 5, *[_LARGE] * 3)),
    "bmshj2018-factorized-relu": System(FactorizedPriorReLU, (*[_SMALL] * 5, *[_LARGE] * 3)),
    "bmshj2018-hyperprior": System(ScaleHyperprior, (*[_SMALL] * 5, *[_LARGE] * 3)),
    "mbt2018-mean": System(MeanScaleHyperprior, (*[_SMALL] * 4, *[_LARGE] * 4)),
    "mbt2018": System(JointAutoregressive, (*[_EQUAL] * 4, *[_LARGE] * 4)),
    "mbt2018-checkerboard": System(Checkerboard, (*[_EQUAL] * 4, *[_LARGE] * 4)),
    "random-mask": System(RandomMask, (*[_EQUAL] * 4, *[_LARGE] * 4)),
    "cheng2020-serial": System(Cheng2020, _CHENG),
    "cheng2020-serial-attention": System(Cheng2020Attention, _CHENG),
    "cheng2020-checkerboard": System(Cheng2020Checkerboard, _CHENG),
    "cheng2020-checkerboard-attention": System(Cheng2020CheckerboardAttention, _CHENG),
    # K = 3, as in the papers; those above have K = 1, as in CompressAI.
    "cheng2020-serial-mixture": System(Cheng2020Mixture, _CHENG),
    "cheng2020-serial-mixture-attention": System(Cheng2020MixtureAttention, _CHENG),
    "cheng2020-checkerboard-mixture": System(Cheng2020CheckerboardMixture, _CHENG),
    "cheng2020-checkerboard-mixture-attention": System(Cheng2020CheckerboardMixtureAttention, _CHENG),
    "bmshj2018-hyperprior-vbr": System(ScaleHyperpriorVariableRate, (_LARGE,)),
    "mbt2018-mean-vbr": System(MeanScaleHyperpriorVariableRate, (_LARGE,)),
    "mbt2018-vbr": System(JointAutoregressiveVariableRate, (_LARGE,)),
    "elic2022-official": System(Elic2022, (_LARGE,) * 8),
    "elic2022-chandelier": System(Elic2022Chandelier, (_LARGE,) * 8),
}


def _system(name: str) -> System:
    if name not in SYSTEMS:
        raise ValueError(f"no system named {name!r}; the zoo has {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def create(name: str, quality: int, **options: Any) -> CompressionModel:
    """An untrained system with the channels of a quality, from 1 on. ValueError for a name or a quality not there.

    options: rounding="latents" for y^ = round(y), as in He et al. 2021, in the systems that predict means.
    """
    system = _system(name)
    if system.model.variable_rate:
        raise ValueError(f"{name} is loaded from CompressAI's weights, not trained here")
    if not 1 <= quality <= len(system.channels):
        raise ValueError(f"{name} has the qualities 1 to {len(system.channels)}, not {quality}")
    return system.model(*system.channels[quality - 1], **options)


def load(name: str, state: Mapping[str, Tensor], **options: Any) -> CompressionModel:
    """A system with the weights of a state dict, this package's or CompressAI's, in evaluation mode, with its tables;
    an integer one where the state dict is of one (`integerize.py`). On the CPU, in float32.

    options: as of `create`. Raises ValueError for a name that is not there, RuntimeError for another system's weights.
    """
    model_class = _system(name).model
    with torch.device("cpu"):
        try:
            model = model_class.from_shapes(
                {name.removeprefix("module."): tensor for name, tensor in state.items()}, **options
            ).float()
        except KeyError as error:
            raise RuntimeError(f"not a state dict of {name}: it has no {error}") from None
        if any(name.endswith(".input_bits") for name in state):
            model = skeleton(model)
    model.load_state_dict(state)
    model.update()
    return model.requires_grad_(False).eval()
