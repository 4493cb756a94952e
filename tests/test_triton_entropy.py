"""The entropy network's kernels equal their references, and the references equal the model, bit for bit.

Without a GPU the kernels run in Triton's interpreter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fastcodec.entropy import rdoq as rounding
from fastcodec.entropy.code_length import code_lengths
from fastcodec.kernels import checkerboard
from fastcodec.kernels.integer_layer import IntegerLayer, linear_reference
from fastcodec.kernels.triton import hyper_synthesis as hyper
from fastcodec.kernels.triton import parameters
from fastcodec.kernels.triton.common import on_gpu
from fastcodec.kernels.triton.hyper_synthesis import HyperNetwork, hyper_synthesis, hyper_synthesis_reference
from fastcodec.kernels.triton.packed_layer import MOST_TILES, flatten, pack
from fastcodec.kernels.triton.parameter_network import ParameterNetwork
from fastcodec.kernels.triton.parameters import CodedSymbols, Context, SymbolChoice
from fastcodec.kernels.triton.symbol_choice import NOT_FINITE, OUT_OF_RANGE
from fastcodec.kernels.triton.tiles import COLUMNS, Layout, TileTable
from fastcodec.models.swift import release as released
from fastcodec.models.swift.entropy_model import EntropyModel, group_layers, reconstruct

# A single position (no non-anchors), one row, one column, odd and even widths, two blocks of 16 anchors.
SHAPES = ((1, 1), (1, 6), (5, 1), (2, 2), (5, 7), (6, 6))
QUALITIES = (0, 99, 17, 50, 3, 98)
HYPER_LAYERS = ("h_s.head", "h_s.up1", "h_s.middle", "h_s.up2", "h_s.tail")
HALVES = ("anchors", "non_anchors")
LARGEST = 16 * (2**15 - 1) + 2**15  # magnitude of a decoded latent: the largest symbol on the largest mean


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.fixture(params=["few", "many"])
def size(request, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two divisions of work a launch chooses, whatever the number of positions."""
    for module in (hyper, parameters):
        monkeypatch.setattr(module, "FEW_POSITIONS", 0 if request.param == "many" else 2**30)
    return request.param


# ---- models


def random_model(
    generator: torch.Generator, m: int = 32, f: int = 32, c: int = 32, h: int = 32, later: Sequence[int] = ()
) -> EntropyModel:
    """Layers of random weights whose outputs fill their ranges; m latents, f features of psi, c of phi, h hidden.

    later: latents of further groups.
    """
    z, n = 32, 32
    tensors = {}
    groups = []
    for number, latents in enumerate((m, *later)):
        before = m * (number > 0) + sum(later[: max(0, number - 1)])
        names = group_layers(number)
        groups += [
            (names["g_cm"], c, 12 * latents + before, 127),
            (names["g_ep.first"], h, f + c, 127),
            (names["g_ep.second"], h, h, 127),
            (names["g_ep.means"], latents, h, 2**10),
            (names["g_ep.indexes"], latents, h, 63),
        ]
        if number:
            groups.append((names["g_ch"], c, before, 127))
    for name, outputs, inputs, size in (
        ("h_s.head", n, 9 * z, 127),
        ("h_s.up1", 4 * n, n, 127),
        ("h_s.middle", n, 9 * n, 127),
        ("h_s.up2", 4 * n, n, 127),
        ("h_s.tail", f, 9 * n, 127),
        *groups,
    ):
        # Weights and inputs are of some 2^6 each; the outputs' standard deviation shall be about `size`.
        shift = round(12 + math.log2(inputs) / 2 - math.log2(size))
        rows = (100, outputs) if name.startswith("g_ep.first") else (outputs,)
        half_range = size << (shift - 1)
        tensors |= {
            f"{name}.weight": torch.randint(-127, 128, (outputs, inputs), generator=generator).to(torch.int8),
            f"{name}.bias": torch.randint(-half_range, half_range, rows, generator=generator, dtype=torch.int32),
            f"{name}.shift": torch.randint(max(1, shift - 1), shift + 2, (outputs,), generator=generator).int(),
        }
    return EntropyModel(
        tensors | {"context_shift": torch.randint(1, 9, (m + sum(later),), generator=generator, dtype=torch.int32)},
        "reference",
    )


def hyper_network(model: EntropyModel, device: str) -> HyperNetwork:
    return HyperNetwork.pack([model.layers[name] for name in HYPER_LAYERS], device)


def parameter_network(model: EntropyModel, device: str, group: int = -1) -> ParameterNetwork:
    """That of a group, the last one if not said."""
    return ParameterNetwork.pack(*model.group(group % len(model.groups)), device)


@pytest.fixture(scope="module")
def swift() -> EntropyModel:
    return released.load("swift", None, "reference").entropy


# ---- batches


@dataclass(frozen=True)
class Batch:
    """Inputs of a batch of tiles, on the CPU, for the last group of a model.

    anchors: its own latents at the anchors; before: earlier groups' at the anchors and at the non-anchors, or None.
    """

    layout: Layout
    qualities: tuple[int, ...]
    z: Tensor
    psi: Tensor
    anchors: Tensor
    before: tuple[Tensor | None, Tensor | None]

    def tiles(self, place: str = "cpu") -> TileTable:
        return TileTable(self.layout.table(self.qualities).to(place), self.layout.longest)

    def context(self, half: str, place: str = "cpu") -> Context:
        """What the pass of a half refers to."""
        second = half == "non_anchors"
        before = self.before[second]
        return Context(
            self.anchors.to(place) if second else None,
            None if before is None else before.to(place),
        )

    def rows(self, half: str) -> int:
        return sum(getattr(self.layout, half))


def random_batch(
    generator: torch.Generator,
    model: EntropyModel,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    qualities: tuple[int, ...] = QUALITIES,
) -> Batch:
    layout = Layout(shapes)
    z = model.layers["h_s.head"].weight.shape[1] // 9
    features, latents = model.layers["h_s.tail"].weight.shape[0], len(model.context_shift)
    halves = []
    for counts in (layout.anchors, layout.non_anchors):
        scale = 2.0 ** torch.randint(4, 12, (sum(counts), 1), generator=generator)
        half = scale * torch.randn(sum(counts), latents, generator=generator)
        halves.append(half.round().clamp(-LARGEST, LARGEST).int())
    own = model.groups[-1]
    return Batch(
        layout,
        qualities,
        z=torch.randint(-140, 141, (sum(layout.hyper_positions), z), generator=generator, dtype=torch.int16),
        psi=torch.randint(-127, 128, (sum(layout.positions), features), generator=generator, dtype=torch.int8),
        anchors=halves[0][:, own],
        before=tuple(half[:, : own.start] if own.start else None for half in halves),
    )


UNTOUCHED = 85


def assert_equals_reference(
    operation: Callable, reference: Callable, arguments: Sequence, forms: Sequence[tuple], device: str
) -> list[Tensor]:
    """Runs both, each writing to tensors [rows, channels] of these forms between two rows that must stay as they are.

    arguments: tensors, or functions of the device that give what is no tensor. Returns what the reference wrote.
    """
    results = []
    for function, place in ((operation, device), (reference, "cpu")):
        memory = [torch.full((r + 2, c), UNTOUCHED, dtype=dtype, device=place) for r, c, dtype in forms]
        inputs = [argument(place) if callable(argument) else argument for argument in arguments]
        inputs = [argument.to(place) if isinstance(argument, Tensor) else argument for argument in inputs]
        function(*inputs, *(tensor[1:-1] for tensor in memory))
        results.append([tensor.cpu() for tensor in memory])
    for found, expected in zip(*results, strict=True):
        assert (found[[0, -1]] == UNTOUCHED).all(), "written beyond its end"
        assert torch.equal(found, expected)
    return [tensor[1:-1] for tensor in results[1]]


def parameter_forms(batch: Batch, half: str) -> list[tuple[int, int, torch.dtype]]:
    return [(batch.rows(half), batch.anchors.shape[1], dtype) for dtype in (torch.int16, torch.uint8)]


def assert_parameters_equal(model: EntropyModel, batch: Batch, device: str) -> list[Tensor]:
    """Both passes; returns means and indexes of the anchors, and of the non-anchors."""

    found = []
    for half in HALVES:
        found += assert_equals_reference(
            parameters.decode_parameters,
            parameters.decode_parameters_reference,
            (batch.psi, partial(batch.context, half), batch.tiles, partial(parameter_network, model)),
            parameter_forms(batch, half),
            device,
        )
    return found


def assert_psi_equal(model: EntropyModel, batch: Batch, device: str) -> Tensor:
    (psi,) = assert_equals_reference(
        hyper_synthesis,
        hyper_synthesis_reference,
        (batch.z, batch.tiles, lambda place: hyper_network(model, place)),
        [(*batch.psi.shape, torch.int8)],
        device,
    )
    return psi


def varied(tensor: Tensor, low: int, high: int) -> bool:
    """Whether values are spread over the range, so that equality says something."""
    inside = (tensor > low) & (tensor < high)
    return bool(tensor.unique().numel() > (high - low) / 8 and inside.float().mean() > 0.2)


# ---- kernels equal references


def test_hyper_synthesis(generator, device, size):
    model = random_model(generator)
    assert varied(assert_psi_equal(model, random_batch(generator, model), device), -127, 127)


@pytest.mark.parametrize("later", [(), (96,), (32, 64)])
@pytest.mark.parametrize("channels", [(128, 32, 64, 32), (32, 64, 32, 128)])
def test_parameters(generator, device, size, channels, later):
    model = random_model(generator, *channels, later=later)
    first_means, first_indexes, means, indexes = assert_parameters_equal(model, random_batch(generator, model), device)
    for tensor in (first_means, means):
        assert varied(tensor.clamp(-1000, 1000), -1000, 1000)
    for tensor in (first_indexes, indexes):
        assert varied(tensor, 0, 63)


def test_every_layer_alone(generator, device):
    """A batch of one tile, of several equal tiles and of none."""
    model = random_model(generator)
    for shapes in (((6, 5),), ((2, 3),) * 3, ((1, 1),), ()):
        batch = random_batch(generator, model, shapes, QUALITIES[: len(shapes)])
        assert_psi_equal(model, batch, device)
        assert_parameters_equal(model, batch, device)


def extreme(layer: IntegerLayer, shift: int, generator: torch.Generator) -> IntegerLayer:
    """Weights of +-127, biases that put the outputs near their range's middle, and one shift."""
    sign = torch.randint(0, 2, layer.weight.shape, generator=generator) * 2 - 1
    return replace(
        layer,
        weight=(127 * sign).to(torch.int8),
        bias=torch.randint(-(2**20), 2**20, layer.bias.shape, generator=generator, dtype=torch.int32),
        shift=torch.full_like(layer.shift, shift),
    )


@pytest.mark.parametrize("shift", [1, 24])
def test_extreme_values(generator, device, shift):
    """Activations at their clamps, weights of +-127, the smallest and the largest shift, and latents to match."""
    model = random_model(generator, later=(32,))
    batch = random_batch(generator, model, ((5, 6), (3, 3)), (99, 0))
    sign = torch.randint(0, 2, batch.psi.shape, generator=generator) * 2 - 1
    batch = replace(
        batch,
        z=torch.where(batch.z > 0, 2**15 - 1, -(2**15)).to(torch.int16),
        psi=(127 * sign).to(torch.int8),
        anchors=torch.where(batch.anchors > 0, LARGEST, -LARGEST).int(),
        before=tuple(torch.where(half > 0, LARGEST, -LARGEST).int() for half in batch.before),
    )
    model.layers = {name: extreme(layer, shift, generator) for name, layer in model.layers.items()}
    model.context_shift = torch.full_like(model.context_shift, shift)
    assert_psi_equal(model, batch, device)
    assert_parameters_equal(model, batch, device)


def test_the_released_model(swift, generator, device, size):
    batch = random_batch(generator, swift, ((5, 6), (1, 3)), (0, 73))
    psi = assert_psi_equal(swift, replace(batch, z=batch.z // 16), device)
    assert_parameters_equal(swift, replace(batch, psi=psi), device)


# ---- references equal the model


@pytest.mark.parametrize("later", [(), (64,)])
def test_references_are_the_model(generator, later):
    model = random_model(generator, later=later)
    batch = random_batch(generator, model)
    psi = torch.empty_like(batch.psi)
    hyper_synthesis_reference(batch.z, batch.tiles(), hyper_network(model, "cpu"), psi)
    network, group = parameter_network(model, "cpu"), len(later)
    first, second = ([torch.empty(form[:2], dtype=form[2]) for form in parameter_forms(batch, half)] for half in HALVES)
    for half, outputs in zip(HALVES, (first, second), strict=True):
        parameters.decode_parameters_reference(psi, batch.context(half), batch.tiles(), network, *outputs)
    layout = batch.layout
    parts = zip(
        layout.shapes,
        layout.hyper_shapes,
        QUALITIES,
        batch.z.split(layout.hyper_positions),
        psi.split(layout.positions),
        batch.anchors.split(layout.anchors),
        *(
            [None] * len(counts) if half is None else half[None].split(counts, 1)
            for half, counts in zip(batch.before, (layout.anchors, layout.non_anchors), strict=True)
        ),
        *(tensor.split(layout.anchors) for tensor in first),
        *(tensor.split(layout.non_anchors) for tensor in second),
        strict=True,
    )
    for (height, width), hyper_shape, quality, z, found, anchors, at_anchors, at_others, *halves in parts:
        expected = model.hyper_synthesis(z.view(1, *hyper_shape, -1), height, width)
        assert torch.equal(found.long(), torch.cat(expected, 1)[0])
        for (means, indexes), wanted in (
            (halves[:2], model.anchor_parameters(expected[0], quality + 1, group, at_anchors)),
            (
                halves[2:],
                model.non_anchor_parameters(expected[1], anchors[None], (height, width), quality + 1, group, at_others),
            ),
        ):
            assert torch.equal(means.int(), wanted.means[0])
            assert torch.equal(indexes, wanted.indexes[0])


def test_packing_keeps_the_layer(generator):
    layers = random_model(generator).layers
    x = torch.randint(-127, 128, (5, layers["g_ep.first"].weight.shape[1]), generator=generator)
    packed = pack(layers["g_ep.first"], "cpu")
    assert packed.bias_stride == packed.outputs
    assert torch.equal(linear_reference(x, packed.unpacked(), 41), linear_reference(x, layers["g_ep.first"], 41))
    single = pack(layers["g_ep.second"], "cpu")
    assert single.bias_stride == 0
    x = x[:, : single.inputs]
    assert torch.equal(linear_reference(x, single.unpacked(), 0), linear_reference(x, layers["g_ep.second"]))


def test_live_taps_are_the_odd_ones():
    """What the kernel computes the taps' places from."""
    assert [(odd // 5 - 2, odd % 5 - 2) for odd in range(1, 25, 2)] == list(checkerboard.LIVE_TAPS)


# ---- encoding


@dataclass(frozen=True)
class Encoding:
    """A pass to encode: the half's name, and what the encoder wants."""

    half: str
    y: Tensor
    weight: Tensor

    def choice(self, lengths: Tensor, place: str = "cpu") -> SymbolChoice:
        return SymbolChoice(*(tensor.to(place) for tensor in (self.y, self.weight, lengths)))


def encodings(generator: torch.Generator, model: EntropyModel, batch: Batch, rows: int) -> list[Encoding]:
    """Both passes, with residuals of every size, ties included. rows: of the weights."""
    network = parameter_network(model, "cpu")
    found = []
    for half in HALVES:
        means = torch.empty(batch.rows(half), network.latents, dtype=torch.int16)
        inputs = (batch.psi, batch.context(half), batch.tiles(), network)
        parameters.decode_parameters_reference(*inputs, means, means.byte())
        scale = 10.0 ** torch.randint(-1, 5, means.shape, generator=generator)
        residual = (scale * torch.randn(means.shape, generator=generator)).clamp(-32000, 32000)
        tied = torch.rand(means.shape, generator=generator) < 0.2
        residual = torch.where(tied, residual.floor() + 0.5, residual)
        residual[0] = torch.tensor([32767.25, -32767.25, 32766.5, -32766.5]).repeat(network.latents // 4)
        weight = 10 ** torch.empty(rows, network.latents).uniform_(-4, 0, generator=generator)
        found.append(Encoding(half, means / 16 + residual, weight))
    return found


def encode_forms(batch: Batch, half: str) -> list[tuple[int, int, torch.dtype]]:
    return [(batch.rows(half), batch.anchors.shape[1], dtype) for dtype in (torch.int16, torch.uint8, torch.int32)]


def assert_encodings_equal(
    model: EntropyModel, batch: Batch, encoding: Encoding, lengths: Tensor, device: str
) -> list[Tensor]:
    """The operation against its reference; returns symbols, indexes and values, which must be without error."""
    errors = {place: torch.zeros(1, dtype=torch.int32, device=place) for place in {"cpu", device}}

    def with_error(function: Callable) -> Callable:
        return lambda *inputs: function(*inputs[:-3], CodedSymbols(*inputs[-3:], errors[inputs[0].device.type]))

    found = assert_equals_reference(
        with_error(parameters.encode_parameters),
        with_error(parameters.encode_parameters_reference),
        (
            *(batch.psi, partial(batch.context, encoding.half), batch.tiles),
            *(partial(parameter_network, model), partial(encoding.choice, lengths)),
        ),
        encode_forms(batch, encoding.half),
        device,
    )
    assert all(int(error) == 0 for error in errors.values())
    return found


@pytest.mark.parametrize("rows, columns", [(1, None), (100, 20)])
def test_encoding(generator, device, size, rows, columns):
    """rows: of the weights; columns: of a made-up table of lengths instead of the model's."""
    model = random_model(generator)
    batch = random_batch(generator, model)
    lengths = code_lengths().float()
    if columns:
        lengths = torch.rand(64, columns, generator=generator).cumsum(1)
    for encoding in encodings(generator, model, batch, rows):
        symbols, indexes, values = assert_encodings_equal(model, batch, encoding, lengths, device)
        assert symbols.abs().max() >= 2**15 - 2
        means = values - (symbols.int() << 4)
        counts = getattr(batch.layout, encoding.half)
        tensors = (tensor.split(counts) for tensor in (symbols, indexes, values, means, encoding.y))
        for quality, tile_symbols, tile_indexes, tile_values, tile_means, y in zip(QUALITIES, *tensors, strict=True):
            weight = encoding.weight[quality if rows > 1 else 0]
            assert torch.equal(tile_symbols, rounding.symbols(y, tile_means, tile_indexes, weight, lengths))
            assert torch.equal(tile_values, reconstruct(tile_symbols, tile_means))
            assert not tile_symbols[tile_indexes == 0].any()
        rounded = (encoding.y - means / 16).round() * (indexes > 0)
        assert 0.02 < (symbols != rounded).float().mean() < 0.9, "the choice is not put to the test"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize(
    "residual, expected",
    [
        (float("nan"), NOT_FINITE),
        (-float("inf"), NOT_FINITE),
        (32767.5, OUT_OF_RANGE),
        (-3e38, OUT_OF_RANGE),
        (32767.25, 0),
    ],
)
def test_error_word(generator, device, residual, expected):
    model = random_model(generator)
    batch = random_batch(generator, model, ((1, 3), (1, 2)), (1, 2))
    for encoding in encodings(generator, model, batch, 1):
        written = [torch.empty(form[:2], dtype=form[2], device=device) for form in encode_forms(batch, encoding.half)]
        error = torch.zeros(1, dtype=torch.int32, device=device)
        context, tiles = batch.context(encoding.half, device), batch.tiles(device)
        inputs = (batch.psi.to(device), context, tiles, parameter_network(model, device))

        def encode(y: Tensor) -> list[Tensor]:
            choice = replace(encoding, y=y).choice(code_lengths().float(), device)  # noqa: B023
            parameters.encode_parameters(*inputs, choice, CodedSymbols(*written, error))  # noqa: B023
            return [tensor.cpu().clone() for tensor in written]  # noqa: B023

        symbols, _, values = encode(encoding.y)
        assert int(error) == 0
        y = encoding.y.clone()
        y[-1, -1] = (values[-1, -1] - 16 * symbols[-1, -1].int()) / 16 + residual
        spoilt, _, _ = encode(y)
        assert int(error) == expected
        if expected:
            assert int(spoilt[-1, -1]) == 0
        encode(encoding.y)
        assert int(error) == expected, "a later launch must not clear it"


# ---- launches


TYPES = {torch.int8: "*i8", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.float32: "*fp32"}


class Recorder:
    """Stands for a kernel, and notes its launches in the terms of a `Build`: signature, constants, options."""

    def __init__(self, kernel, seen: list):
        self._names, self._seen = kernel.arg_names, seen

    def __getitem__(self, grid):
        return self._launch

    def _launch(self, *values, **named):
        given = dict(zip(self._names, values, strict=False))
        types = {k: TYPES[v.dtype] if isinstance(v, Tensor) else "i32" for k, v in given.items() if v is not None}
        constants = {k: v for k, v in given.items() if v is None} | {k: v for k, v in named.items() if k in self._names}
        self._seen.append((types, constants, {k: v for k, v in named.items() if k not in self._names}))


def test_launches_are_what_is_compiled_ahead_of_time(swift, generator, monkeypatch):
    """The released model's launches are those of `builds()`, whose cost docs/kernels.md tells: these and no others."""
    expected = [
        (dict(b.signature), dict(b.constants), {"num_warps": b.warps, **b.options})
        for b in (*hyper.builds(), *parameters.builds())
    ]
    seen = []
    for module, name in ((hyper, "_convolve_and_double"), (hyper, "_convolve_to_psi"), (parameters, "_parameters")):
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), seen))
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    batch = random_batch(generator, swift, ((4, 4),), (1,))
    tiles, error = batch.tiles(), torch.zeros(1, dtype=torch.int32)
    for few in (True, False):
        for module in (hyper, parameters):
            monkeypatch.setattr(module, "FEW_POSITIONS", 2**30 if few else 0)
        hyper_synthesis(batch.z, tiles, hyper_network(swift, "cpu"), batch.psi)
        for number, own in enumerate(swift.groups):
            network, latents = parameter_network(swift, "cpu", number), own.stop - own.start
            halves = [torch.empty(8, 256, dtype=torch.int32) for _ in range(2)]
            means, symbols = (torch.empty(8, latents, dtype=torch.int16) for _ in range(2))
            indexes = torch.empty(8, latents, dtype=torch.uint8)
            choice = SymbolChoice(torch.empty(8, latents), torch.empty(1, latents), code_lengths().float())
            for anchors, values in zip((None, halves[0][:, own]), halves, strict=True):
                context = Context(anchors, values[:, : own.start] if number else None)
                inputs, out = (batch.psi, context, tiles, network), (symbols, indexes, values[:, own], error)
                parameters.decode_parameters(*inputs, means, indexes)
                parameters.encode_parameters(*inputs, choice, CodedSymbols(*out))
    assert len(seen) == len(expected)
    for build in expected:
        assert build in seen


# ---- operators


def test_operators(generator, device):
    model = random_model(generator, later=(32,))
    batch = random_batch(generator, model, ((1, 2),), (5,))
    network, hyper_layers = parameter_network(model, device), hyper_network(model, device)
    psi, tiles, error = batch.psi.to(device), batch.tiles(device), torch.zeros(1, dtype=torch.int32, device=device)

    def empty(half: str, *dtypes: torch.dtype) -> list[Tensor]:
        return [torch.empty(batch.rows(half), network.latents, dtype=dtype, device=device) for dtype in dtypes]

    def inputs(half: str) -> list:
        return [psi, *batch.context(half, device), tiles.rows, tiles.longest, *network.flatten()]

    choice = (torch.ones(1, network.latents, device=device), code_lengths().float().to(device))
    cases = [
        ("hyper_synthesis", batch.z.to(device), tiles.rows, tiles.longest, *flatten(hyper_layers.layers), psi.clone()),
        *(("decode_parameters", *inputs(half), *empty(half, torch.int16, torch.uint8)) for half in HALVES),
        (
            *("encode_parameters", *inputs("anchors"), *empty("anchors", torch.float32), *choice),
            *(*empty("anchors", torch.int16, torch.uint8, torch.int32), error),
        ),
    ]
    for name, *arguments in cases:
        operator = getattr(torch.ops.fastcodec, name).default
        torch.library.opcheck(operator, tuple(arguments), test_utils=("test_schema", "test_faketensor"))


def test_without_a_gpu_kernels_are_interpreted():
    assert on_gpu(torch.empty(0)) == (not torch.cuda.is_available())


def test_without_the_interpreter_references_run(generator, monkeypatch):
    """The same comparisons, with references behind the operators: arguments go where they belong."""
    for module in (hyper, parameters):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: False)
    model = random_model(generator)
    batch = random_batch(generator, model)
    assert_psi_equal(model, batch, "cpu")
    assert_parameters_equal(model, batch, "cpu")
    for encoding in encodings(generator, model, batch, 1):
        assert_encodings_equal(model, batch, encoding, code_lengths().float(), "cpu")


# ---- errors


def test_tensors_of_another_form_are_refused(generator):
    model = random_model(generator)
    batch = random_batch(generator, model)
    tiles = batch.tiles()
    network, hyper_layers = parameter_network(model, "cpu"), hyper_network(model, "cpu")
    means, indexes = (torch.empty(form[:2], dtype=form[2]) for form in parameter_forms(batch, "anchors"))
    first = Context()

    def refused(match: str, psi=batch.psi, context=first, tiles=tiles, means=means, indexes=indexes) -> None:
        with pytest.raises(ValueError, match=match):
            parameters.decode_parameters(psi, context, tiles, network, means, indexes)

    refused("psi", psi=batch.psi.short())
    refused("psi", psi=batch.psi[:, :16])
    refused("not contiguous", psi=batch.psi.T.contiguous().T)
    refused("tiles", tiles=replace(tiles, rows=tiles.rows.long()))
    refused("tiles", tiles=replace(tiles, longest=-1))
    refused("tiles", tiles=TileTable(torch.zeros(MOST_TILES + 1, COLUMNS, dtype=torch.int32), 1))
    refused("means", means=means.int())
    refused("indexes", indexes=indexes[1:])
    refused("anchors", psi=batch.psi[len(SHAPES) :])
    refused("anchors", psi=torch.cat([batch.psi, batch.psi]))
    half = [torch.empty(form[:2], dtype=form[2]) for form in parameter_forms(batch, "non_anchors")]
    refused("anchors", context=Context(batch.anchors[1:]), means=half[0], indexes=half[1])
    refused(r"before must be torch\.int32 \[\d+, 0\]", context=Context(before=batch.anchors))
    later = parameter_network(random_model(generator, later=(32,)), "cpu")
    with pytest.raises(ValueError, match=r"before must be .*, not None"):
        parameters.decode_parameters(batch.psi, first, tiles, later, means, indexes)
    with pytest.raises(ValueError, match="z must"):
        hyper_synthesis(batch.z.int(), tiles, hyper_layers, batch.psi.clone())
    with pytest.raises(ValueError, match="do not belong"):
        hyper_synthesis(batch.z[:4], tiles, hyper_layers, batch.psi.clone())


def test_layers_that_do_not_fit_are_refused(generator):
    model = random_model(generator)
    layers, shifts = model.group(0)
    with pytest.raises(ValueError, match="second"):
        ParameterNetwork.pack(layers | {"g_ep.second": layers["g_cm"]}, shifts, "cpu")
    second = replace(layers["g_ep.second"], high=200)
    with pytest.raises(ValueError, match=r"second gives 0\.\.200"):
        ParameterNetwork.pack(layers | {"g_ep.second": second}, shifts, "cpu")
    with pytest.raises(ValueError, match="context_shift"):
        ParameterNetwork.pack(layers, shifts[1:], "cpu")
    with pytest.raises(ValueError, match="48 latents"):
        parameter_network(random_model(generator, m=48), "cpu")
    with pytest.raises(ValueError, match="48 latents before"):
        parameter_network(random_model(generator, m=48, later=(32,)), "cpu")
    hyper_layers = [model.layers[name] for name in HYPER_LAYERS]
    with pytest.raises(ValueError, match="up1"):
        HyperNetwork.pack([hyper_layers[0], hyper_layers[0], *hyper_layers[2:]], "cpu")
