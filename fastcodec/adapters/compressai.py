"""CompressAI's models on fastcodec's coders: `install()`, and `uninstall()`::

    import fastcodec.adapters.compressai as adapter

    adapter.install()                      # compatible: CompressAI's own bytes
    with adapter.install("native"):        # fastcodec's streams, for as long as the block runs
        strings = model.compress(x)["strings"]

docs/adapters.md lists the functions that are replaced.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
import sys
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import UnavailableError
from ..kernels import forks, rans64
from ..kernels.rans64.latents import quantise, quantise_rows
from . import _ans
from ._model_tables import ModelTables, as_rows, narrowed

__all__ = ["Installation", "active", "install", "uninstall"]

Mode = Literal["compatible", "native"]
_MODES = ("compatible", "native")

_lock = threading.RLock()
forks.hold(_lock)
_installations: list[Installation] = []
_undo = contextlib.ExitStack()


def install(mode: Mode = "compatible") -> Installation:
    """From now on CompressAI's models, those that exist already too, code through fastcodec, in the whole process.

    Installations nest: the last one that was not undone says how. The result undoes this one, by its `uninstall()` or
    as a context manager.

    Args:
        mode: "compatible" writes and reads CompressAI's bytes. "native" makes of `EntropyModel.compress` and
            `decompress` fastcodec's own streams, coded on the device of the tensors, all images of a batch at once;
            strings remain one `bytes` an image, but only native mode reads them. What models do with `compressai.ans`
            itself (the autoregressive ones) is compatible in both.

    Raises:
        ValueError: another mode.
        UnavailableError: CompressAI is not installed, or too old.
    """
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}, not {mode!r}")
    with _lock:
        if not _installations:
            _patch()
        installation = Installation(mode)
        _installations.append(installation)
        return installation


def uninstall() -> None:
    """Undoes every installation: CompressAI is as it was.

    A function that something else has put in the place of ours meanwhile is left where it is; ours, should that one
    call it, then calls CompressAI's.
    """
    with _lock:
        for installation in list(_installations):
            installation.uninstall()


def active() -> Mode | None:
    """The mode that is in force, or None."""
    last = _installations[-1:]
    return last[0].mode if last else None


class Installation:
    """An installation in force. Leaving it as a context, or `uninstall()`, undoes it; a second time does nothing."""

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode

    def uninstall(self) -> None:
        """Undoes this installation; those before and after it remain."""
        with _lock:
            if self in _installations:
                _installations.remove(self)
                if not _installations:
                    _restore()

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.uninstall()


# ---------------------------------------------------------------------------------------------------------------------
# What is replaced


class _EntropyModel(Protocol):
    """The parts of CompressAI's `EntropyModel` and `EntropyModelVbr` that are used."""

    entropy_coder: object
    _quantized_cdf: Tensor
    _cdf_length: Tensor
    _offset: Tensor

    def quantize(self, inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor: ...
    def dequantize(self, inputs: Tensor, means: Tensor | None = None, dtype: torch.dtype = ...) -> Tensor: ...
    def quantize_variable(self, inputs: Tensor, mode: str, means: Tensor | None, qs: Tensor) -> Tensor: ...
    def dequantize_variable(self, inputs: Tensor, means: Tensor | None, dtype: torch.dtype, qs: Tensor) -> Tensor: ...
    def _check_cdf_size(self) -> None: ...
    def _check_cdf_length(self) -> None: ...
    def _check_offsets_size(self) -> None: ...


class _Bottleneck(_EntropyModel, Protocol):
    """The part of its `EntropyBottleneck` that is used."""

    def _get_medians(self) -> Tensor: ...


_PARTS_OF_A_BOTTLENECK = ("_build_indexes", "_extend_ndims", "quantize", "dequantize")
_PARTS = ("ans", "_CXX", "entropy_models.entropy_models", "entropy_models.entropy_models_vbr")
# Of the installation in force: CompressAI's compiled classes and functions, each with ours; its quantisers and their
# inverse; and, of EntropyBottleneck and what it inherits, what `_factorised` stands for.
_replacements: list[tuple[Any, Any]] = []
_quantisers: list[Callable] = []
_dequantisers: list[Callable] = []
_bottleneck: dict[str, Any] = {}


def _patch() -> None:
    if importlib.util.find_spec("compressai") is None:
        raise UnavailableError("CompressAI is not installed: pip install compressai (docs/dependencies.md)")
    try:
        ans, cxx, models, vbr = (importlib.import_module(f"compressai.{name}") for name in _PARTS)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("compressai."):
            raise
        raise UnavailableError(f"this CompressAI is too old: it has no {error.name}, which 1.2.8 has") from error
    names = ("RansEncoder", "BufferedRansEncoder", "RansDecoder")
    _replacements[:] = [(getattr(ans, name), getattr(_ans, name)) for name in names]
    _replacements.append((cxx.pmf_to_quantized_cdf, _ans.pmf_to_quantized_cdf))
    _quantisers[:] = [models.EntropyModel.quantize, vbr.EntropyModelVbr.quantize]
    _dequantisers[:] = [models.EntropyModel.dequantize]
    _exchange(_replacements)
    for owner, compress, decompress in (
        (models.EntropyModel, _compress, _decompress),
        (vbr.EntropyModelVbr, _compress_vbr, _decompress_vbr),
    ):
        _replace(owner, "compress", compress, _mode_for)
        _replace(owner, "decompress", decompress, _mode_for)
    bottleneck = models.EntropyBottleneck
    _bottleneck.update(
        {name: getattr(bottleneck, name) for name in _PARTS_OF_A_BOTTLENECK},
        owner=bottleneck,
        inherited=(models.EntropyModel.compress, models.EntropyModel.decompress),
    )
    _replace(bottleneck, "compress", _compress_factorised, _factorised)
    _replace(bottleneck, "decompress", _decompress_factorised, _factorised)
    for name in ("_encoder", "_decoder"):
        _put(models._EntropyCoder, name, _held_coder(name))


def _restore() -> None:
    _undo.close()
    _exchange([(ours, theirs) for theirs, ours in _replacements])
    _model_tables.clear()
    _own_coders.clear()
    _ans.forget_tables()


def _exchange(pairs: list[tuple[Any, Any]]) -> None:
    """Replaces each first by its second wherever a loaded module has it as an attribute, by whatever name."""
    for module in list(sys.modules.values()):
        if not isinstance(module, types.ModuleType) or module is _ans:
            continue
        for name, value in list(vars(module).items()):
            for old, new in pairs:
                if value is old:
                    setattr(module, name, new)


# ---------------------------------------------------------------------------------------------------------------------
# The coders that entropy models hold

_own_coders: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def _held_coder(name: str) -> property:
    """`_EntropyCoder`'s attribute: what the object holds remains CompressAI's, and ours is given in its place.

    So models made before, during and after an installation all follow it.
    """

    def get(self: object) -> Any:
        if name not in self.__dict__:
            raise AttributeError(name)
        held = self.__dict__[name]
        for theirs, ours in _replacements:
            if type(held) is theirs:
                own = _own_coders.setdefault(self, {})
                return own.setdefault(name, ours())
        return held

    def put(self: object, value: object) -> None:
        for theirs, ours in _replacements:
            if type(value) is ours:
                value = theirs()
        self.__dict__[name] = value

    return property(get, put)


# ---------------------------------------------------------------------------------------------------------------------
# The entropy models' own compress and decompress: the same checks, the same errors, tensors to bytes


def _replace(owner: type, name: str, ours: Callable, condition: Callable[[Any], object | None]) -> None:
    """Replace a method by `ours`, which takes after the object what `condition` says of it; where that is None, or ours
    gives None, the one before it is called.

    `torch.compile` must not trace ours, whose tables and addresses cannot be traced. `torch.compiler.disable` imports
    the compiler, which takes seconds: only where it is at work already.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(call)(self, *args, **kwargs)
        given = condition(self)
        result = None if given is None else ours(self, given, *args, **kwargs)
        return original(self, *args, **kwargs) if result is None else result

    _put(owner, name, call)


def _put(owner: type, name: str, ours: Any) -> None:
    """Give a class an attribute, and have `_restore` give it back what was its own there."""
    before = vars(owner).get(name)

    def restore() -> None:
        if vars(owner).get(name) is not ours:
            return  # someone else's by now
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    setattr(owner, name, ours)
    _undo.callback(restore)


def _compress(
    self: _EntropyModel, mode: Mode, inputs: Tensor, indexes: Tensor, means: Tensor | None = None
) -> list[bytes]:
    return _compress_vbr(self, mode, inputs, indexes, means)


def _compress_vbr(
    self: _EntropyModel,
    mode: Mode,
    inputs: Tensor,
    indexes: Tensor,
    means: Tensor | None = None,
    qs: Tensor | None = None,
) -> list[bytes]:
    if qs is None:
        symbols = functools.partial(self.quantize, inputs, "symbols", means)
    else:
        symbols = functools.partial(self.quantize_variable, inputs, "symbols", means=means, qs=qs)
    return _coded(self, mode, _Latents(inputs, indexes, means), symbols, qs is None and _is_plain(self))


def _decompress(
    self: _EntropyModel,
    mode: Mode,
    strings: list[bytes],
    indexes: Tensor,
    dtype: torch.dtype = torch.float,
    means: Tensor | None = None,
) -> Tensor:
    return _decompress_vbr(self, mode, strings, indexes, dtype, means)


def _decompress_vbr(
    self: _EntropyModel,
    mode: Mode,
    strings: list[bytes],
    indexes: Tensor,
    dtype: torch.dtype = torch.float,
    means: Tensor | None = None,
    qs: Tensor | None = None,
) -> Tensor:
    symbols = _decoded(self, mode, strings, indexes, means)
    if qs is not None or self.dequantize not in _dequantisers:
        symbols = symbols.to(torch.int32)  # as CompressAI gives them to a subclass's own
    if qs is None:
        return self.dequantize(symbols, means, dtype)
    return self.dequantize_variable(symbols, means=means, dtype=dtype, qs=qs)


def _mode_for(model: _EntropyModel) -> Mode | None:
    """The mode of coding for this entropy model; None: as CompressAI does, since nothing is installed or its coder is
    another one than rANS."""
    mode = active()
    return mode if mode is not None and getattr(model.entropy_coder, "name", None) == "ans" else None


def _is_plain(model: _EntropyModel) -> bool:
    """Whether the model quantises as CompressAI's classes do."""
    return getattr(model.quantize, "__func__", None) in _quantisers


class _Latents(NamedTuple):
    """The tensors that a model compresses, each element by the table of its index."""

    inputs: Tensor
    indexes: Tensor
    means: Tensor | None

    @property
    def in_one_pass(self) -> bool:
        """Whether `quantise` takes them, but for what is not contiguous."""
        floats = [self.inputs] if self.means is None else [self.inputs, self.means]
        return (
            all(_is_plain_float32(tensor) for tensor in floats)
            and self.indexes.dtype == torch.int32
            and self.indexes.device.type == "cpu"
            and self.indexes.size() == self.inputs.size()
        )


def _coded(
    model: _EntropyModel, mode: Mode, latents: _Latents, quantised: Callable[[], Tensor], plain: bool
) -> list[bytes]:
    """The strings of latents. quantised() gives their symbols; plain: these are round(inputs - means)."""
    inputs, indexes, means = latents
    symbols = None if mode == "native" and plain and latents.in_one_pass else quantised()
    if inputs.dim() < 2:
        raise ValueError("Invalid `inputs` size. Expected a tensor with at least 2 dimensions.")
    if inputs.size() != indexes.size():
        raise ValueError("`inputs` and `indexes` should have the same size.")
    tables = _tables_of(model)
    if symbols is None:
        means = None if means is None else means.expand_as(inputs).contiguous()
        pair = quantise(inputs.contiguous(), means, indexes.contiguous(), tables.compatible.count)
        if pair is not None:
            return tables.encode(*pair, tables.where(indexes))
        symbols = quantised()  # what is wrong with them, the general way says
    if mode == "compatible":
        symbols, indexes = (tensor.to("cpu", torch.int32).contiguous() for tensor in (symbols, indexes))
        return rans64.encode([[(*image, tables.compatible)] for image in zip(symbols, indexes, strict=True)])
    indexes = indexes.to(symbols.device)
    narrow = narrowed(indexes, tables.compatible.count)
    return tables.encode(symbols.to(torch.int32), narrow, tables.where(indexes))


def _is_plain_float32(tensor: Tensor | float) -> bool:
    """Whether it lies in memory as its numbers: not on a GPU, nor as the negative of them (`z.conj().imag`)."""
    if not isinstance(tensor, Tensor):
        return False
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and not tensor.is_neg()


def _decoded(model: _EntropyModel, mode: Mode, strings: list[bytes], indexes: Tensor, means: Tensor | None) -> Tensor:
    """The symbols, int32 or int16, of the indexes' shape, on the device of the model's tables."""
    if not isinstance(strings, tuple | list):
        raise ValueError("Invalid `strings` parameter type.")
    if len(strings) != indexes.size(0):
        raise ValueError("Invalid strings or indexes parameters")
    if indexes.dim() < 2:
        raise ValueError("Invalid `indexes` size. Expected a tensor with at least 2 dimensions.")
    tables = _tables_of(model)
    if means is not None:
        if means.size()[:2] != indexes.size()[:2]:
            raise ValueError("Invalid means or indexes parameters")
        if means.size() != indexes.size() and any(means.size(i) != 1 for i in range(2, indexes.dim())):
            raise ValueError("Invalid means parameters")
    for string in strings:
        if not isinstance(string, bytes | bytearray):
            raise TypeError(f"a string of a compressed tensor is bytes, not {type(string).__name__}")
    device = model._quantized_cdf.device
    if mode == "native":
        narrow = narrowed(indexes, tables.compatible.count)
        return tables.decode(strings, narrow, tables.where(indexes)).view(indexes.shape).to(device)
    indexes = indexes.to("cpu", torch.int32).contiguous()
    symbols = torch.empty(indexes.shape, dtype=torch.int32, device="cpu")
    rans64.decode([bytes(string) for string in strings], list(indexes), tables.compatible, out=list(symbols))
    return symbols.to(device)


# ---------------------------------------------------------------------------------------------------------------------
# Factorised priors in native mode: a channel's number is its index, so where each set's elements are is known without
# looking through indexes


def _compress_factorised(self: _Bottleneck, prior: _Factorised, x: Tensor) -> list[bytes] | None:
    return prior.encode(x)


def _decompress_factorised(
    self: _Bottleneck, prior: _Factorised, strings: list[bytes], size: Sequence[int]
) -> Tensor | None:
    if not isinstance(strings, list) or not all(isinstance(string, bytes) for string in strings):
        return None
    return prior.decode(strings, size)


class _Factorised(NamedTuple):
    """An EntropyBottleneck on the CPU: its tables, and the medians of its channels, float32 [C, 1]."""

    tables: ModelTables
    medians: Tensor

    def encode(self, x: Tensor) -> list[bytes] | None:
        """The strings of x, float32 [B, C, ...] on the CPU. None if x is another tensor, or a symbol does not fit: the
        general way codes it or says what is wrong."""
        if not _is_plain_float32(x) or x.dim() < 2 or x.size(1) != len(self.medians):
            return None
        rows = as_rows(x).contiguous()
        symbols = quantise_rows(rows, self.medians)
        if symbols is None:
            return None
        narrow = _channel_numbers(*rows.shape[1:]).expand(rows.shape)
        return self.tables.encode(symbols, narrow, self.tables.where_channels(len(rows)))

    def decode(self, strings: list[bytes], size: Sequence[int]) -> Tensor:
        """The inverse: float32 [B, C, *size]."""
        count = len(self.medians)
        numbers = _channel_numbers(count, math.prod(size))
        narrow = numbers.expand(len(strings), *numbers.shape)
        symbols = self.tables.decode(strings, narrow, self.tables.where_channels(len(strings)))
        return torch.add(symbols, self.medians).view(len(strings), count, *size)


@functools.lru_cache(maxsize=4)
def _channel_numbers(channels: int, columns: int) -> Tensor:
    """uint8 [channels, columns], each row its number mod 256: a factorised prior's indexes. Not to be written to."""
    with torch.inference_mode(False):
        return torch.arange(channels, device="cpu").to(torch.uint8)[:, None].expand(channels, columns).contiguous()


def _factorised(model: _Bottleneck) -> _Factorised | None:
    """The model, if native mode is in force and all is CompressAI's own that takes part: then its indexes are the
    channels' numbers, its symbols round(x - medians), and EntropyModel's `compress` and `decompress` are ours."""
    if _mode_for(model) != "native":
        return None
    own = vars(model)
    if any(name in own or getattr(type(model), name) is not _bottleneck[name] for name in _PARTS_OF_A_BOTTLENECK):
        return None
    base: Any = super(_bottleneck["owner"], model)
    if tuple(getattr(call, "__func__", None) for call in (base.compress, base.decompress)) != _bottleneck["inherited"]:
        return None
    tables, medians = _tables_of(model), model._get_medians().detach()
    devices = {medians.device.type, model._quantized_cdf.device.type}
    if medians.dtype != torch.float32 or devices != {"cpu"} or medians.numel() != tables.compatible.count:
        return None
    return _Factorised(tables, medians.reshape(-1, 1).contiguous())


# ---------------------------------------------------------------------------------------------------------------------
# Tables

_model_tables: weakref.WeakKeyDictionary[_EntropyModel, ModelTables] = weakref.WeakKeyDictionary()


def _tables_of(model: _EntropyModel) -> ModelTables:
    """A model's tables, made anew when its buffers hold other numbers than the last time; then CompressAI's own checks
    of them are made too.

    The numbers themselves are compared: addresses and versions do not tell of changes through `.data`, through NumPy or
    in inference mode.
    """
    buffers = (model._quantized_cdf.detach(), model._cdf_length.detach(), model._offset.detach())
    with _lock:
        tables = _model_tables.get(model)
        if tables is None or not tables.match(buffers):
            model._check_cdf_size()
            model._check_cdf_length()
            model._check_offsets_size()
            tables = _model_tables[model] = ModelTables(buffers)
        return tables
