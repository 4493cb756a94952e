"""Released models: the file that a model ships in, its identity, and loading it for use (`export.py` writes it).

A released model is one safetensors file: transforms in float16, the integer entropy side, the hyper latents' integer
tables, the gains. Its identity is a SHA-256 over every decode-side tensor (synthesis and gains included), so a file is
never decoded with weights other than those it was written for. `weights/index.json` lists the identities that this
installation carries, newest first; the newest encodes, all decode.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...constants import IDENTITY_BYTES, MIN_QUALITY
from ...entropy.code_length import code_lengths, code_lengths_of
from ...entropy.gaussian import COUNT as SCALES_COUNT
from ...entropy.gaussian import gaussian_tables
from ...entropy.rdoq import distortion_weight
from ...errors import FastcodecError, ModelMismatchError, UnsupportedError
from ...files import replacing
from ...kernels.rans import TableSet
from .entropy_model import ACTIVATION_MAX, Backend, EntropyModel
from .network import Analysis, HyperAnalysis, HyperPrior, SwiftConfig, Synthesis

_Module = TypeVar("_Module", bound=torch.nn.Module)
_ENCODE_ONLY = ("g_a.", "h_a.", "gain", "prior.")
PRIOR_TABLES = "prior_tables"
LATENT_TABLES = "latent_tables"


def check_latent_tables(tables: TableSet) -> None:
    """Raises UnsupportedError unless a release's latents can be coded with these tables."""
    if tables.count != SCALES_COUNT or not tables.skip:
        raise UnsupportedError(f"latents need {SCALES_COUNT} tables with skip, not {tables}")


def identity(tensors: dict[str, Tensor], config: str) -> str:
    """SHA-256, cut to 6 bytes, over all that decides a decoded pixel: in hex."""
    digest = hashlib.sha256(config.encode())
    digest.update(gaussian_tables().identity.encode())
    for name in sorted(tensors):
        if not name.startswith(_ENCODE_ONLY):
            tensor = tensors[name]
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()[: 2 * IDENTITY_BYTES]


def hyper_pmfs(prior: HyperPrior) -> np.ndarray:
    """The hyper latents' probabilities at -127..127, float64 [Z, 255]."""
    with torch.no_grad():
        values = torch.arange(-ACTIVATION_MAX, ACTIVATION_MAX + 1, dtype=torch.float64, device=prior.logit.device)
        values = values[:, None, None]
        weight = prior.logit.double().softmax(1)
        scale = torch.exp(-prior.log_scale.double())
        location = prior.location.double()
        # P(z) = sigmoid(b) - sigmoid(a), taken on the side where both are small, or the tails would cancel to zero.
        upper, lower = (values + 0.5 - location) * scale, (values - 0.5 - location) * scale
        sign = torch.where(upper + lower > 0, -1.0, 1.0).to(upper.dtype)
        mass = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        return (weight * mass).sum(2).T.cpu().numpy()


def hyper_tables(prior: HyperPrior) -> TableSet:
    """Integer tables of the factorised prior, one a channel: the values likelier than 2^-16, escapes for the rest."""
    rows = []
    for pmf in hyper_pmfs(prior):
        likely = np.flatnonzero(pmf > 2.0**-16)
        first, last = int(likely[0]), int(likely[-1])
        inside = pmf[first : last + 1]
        rows.append((first - ACTIVATION_MAX, inside, max(1.0 - float(inside.sum()), 2.0**-20)))
    return TableSet.from_pmfs(rows)


@dataclass(frozen=True, eq=False)
class Model:
    """A released model, ready to run. Immutable, so threads and copies share it.

    Its pickle says where it is to be found again; a changed one (`dataclasses.replace`) is in no file, and its pickle
    has all of it.
    """

    variable_rate: ClassVar[bool] = True  # as a system of the zoo says

    name: str
    identity: bytes
    config: SwiftConfig
    about: dict[str, str]
    g_a: Analysis
    h_a: HyperAnalysis
    g_s: Synthesis
    entropy: EntropyModel
    gain: Tensor  # float32 [100, M]
    inverse_gain: Tensor  # float32 [100, M]
    hyper_tables: TableSet
    hyper_code_lengths: Tensor  # float64 [Z, 255]: bits of -127..127 under the prior, for estimates
    tables: TableSet  # of the latents, by scale index
    code_lengths: Tensor  # float64 [64, K]: bits of a latent's symbol by scale index and magnitude
    #: Its file, absolute, and the back end that was asked for; None of a changed model.
    source: tuple[Path, Backend | None] | None = field(default=None, init=False)

    def distortion_weight(self, quality: int) -> Tensor:
        """Bits that a unit of squared error in each latent is worth to RDOQ at a quality: float32 [M]."""
        return distortion_weight(self.config.lagrangian(quality), self.inverse_gain[quality - MIN_QUALITY])

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        if self.source is None:
            return super().__reduce_ex__(protocol)
        path, backend = self.source
        if path.parent == weights_folder().absolute():  # it may lie elsewhere where the pickle goes
            return load, (self.name, self.identity, backend)
        return _read_again, (path, self.identity, backend)

    def __copy__(self) -> Model:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        return self


def read_model(path: Path, backend: Backend | None = None) -> Model:
    """Load a released model's file. Raises ModelMismatchError naming the file where it is not one."""
    try:
        metadata, tensors = read_file(path)
        config = config_of(metadata["config"])
        digest = identity(tensors, metadata["config"])
        entropy = EntropyModel(part_of(tensors, "entropy."), backend)
        prior = _module(HyperPrior, config.hyper_latents, part_of(tensors, "prior."))
        pmf = torch.from_numpy(hyper_pmfs(prior))
        tables, lengths = gaussian_tables(), code_lengths()
        if LATENT_TABLES in tensors:
            tables = TableSet.from_bytes(tensors[LATENT_TABLES].numpy().tobytes())
            check_latent_tables(tables)
            lengths = code_lengths_of(tables)
        model = Model(
            name=metadata["name"],
            identity=bytes.fromhex(digest),
            config=config,
            about=metadata,
            g_a=_module(Analysis, config, part_of(tensors, "g_a.")),
            h_a=_module(HyperAnalysis, config, part_of(tensors, "h_a.")),
            g_s=_module(Synthesis, config, part_of(tensors, "g_s.")),
            entropy=entropy,
            gain=tensors["gain"],
            inverse_gain=tensors["inverse_gain"],
            hyper_tables=TableSet.from_bytes(tensors[PRIOR_TABLES].numpy().tobytes()),
            hyper_code_lengths=-torch.log2(pmf.clamp(min=1e-9)),
            tables=tables,
            code_lengths=lengths,
        )
        object.__setattr__(model, "source", (Path(path).absolute(), backend))
        return model
    except FastcodecError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelMismatchError(f"{path}: not a released fastcodec model ({error})") from error


def read_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a released model's file. Raises what safetensors does."""
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def config_of(text: str) -> SwiftConfig:
    """The config of a release's metadata; releases without a limit of the features are older than it."""
    fields = {"limit": None, **json.loads(text)}
    if fields.get("groups") is not None:
        fields["groups"] = tuple(fields["groups"])
    return SwiftConfig(**fields)


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _module(kind: Callable[[Any], _Module], argument: Any, tensors: dict[str, Tensor]) -> _Module:
    """A module with these tensors as its parameters, in float32, whatever PyTorch's default device and dtype are."""
    with torch.device("meta"):
        module = kind(argument)
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return module.requires_grad_(False).eval()


def copy_file(model: Model, path: Path) -> None:
    """Write a model's file again. Raises UnsupportedError for a changed model, which is in no file."""
    if model.source is None:
        raise UnsupportedError("this model was changed after it was loaded: save the network that it was exported from")
    with replacing(path) as stream:
        stream.write(model.source[0].read_bytes())


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(json.loads((weights_folder() / "index.json").read_text()))


def weights_folder() -> Path:
    """The folder of the shipped releases."""
    return Path(str(resources.files("fastcodec.models") / "weights"))


def available(name: str = "swift") -> list[str]:
    """Identities (hex) of the releases of a model that this installation carries, newest first."""
    index = json.loads((weights_folder() / "index.json").read_text())
    if name not in index:
        raise ModelMismatchError(f"no model named {name!r}; this installation has {', '.join(sorted(index))}")
    return index[name]


@lru_cache(maxsize=8)
def load(name: str = "swift", wanted: bytes | None = None, backend: Backend | None = None) -> Model:
    """A shipped model: its newest release, or the one with identity `wanted`.

    Raises ModelMismatchError, naming both identities, if this installation does not carry it.
    """
    identities = available(name)
    digest = wanted.hex() if wanted is not None else identities[0]
    if digest not in identities:
        raise ModelMismatchError(
            f"written with model {digest}, which this fastcodec does not carry (it has {name}: {', '.join(identities)})"
        )
    return _read_again(weights_folder() / f"{name}-{digest}.safetensors", bytes.fromhex(digest), backend)


@lru_cache(maxsize=8)
def _read_again(path: Path, wanted: bytes, backend: Backend | None) -> Model:
    """A model that is known to lie in a file, once in a process, however it was asked for."""
    model = read_model(path, backend)
    if model.identity != wanted:
        raise ModelMismatchError(
            f"{path}: its weights are those of {model.identity.hex()}, and were those of {wanted.hex()} when it was "
            "installed or pickled"
        )
    return model
