"""The integer entropy side: the float32 twin equals the int64 definition bit for bit, the exporter lets nothing else
out, and what was trained is what runs."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastcodec.codec import Codec
from fastcodec.entropy.fixed_point import EXACT_LIMIT, MAX_SHIFT, accumulator_bound, weight_exponents
from fastcodec.errors import ExactnessError
from fastcodec.images import read_picture
from fastcodec.kernels import checkerboard
from fastcodec.kernels import integer_layer as integer
from fastcodec.kernels.integer_layer import IntegerLayer, exact_float32, linear, linear_reference
from fastcodec.models.swift import release as released
from fastcodec.models.swift.entropy_model import EntropyModel, export_entropy_side, integer_layer, reconstruct
from fastcodec.models.swift.network import Swift, SwiftConfig, quality_position

WIDE = 1 << 30  # a clamp that never acts


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@pytest.fixture(scope="module", params=["float32", "int8"])
def both(request) -> tuple[EntropyModel, EntropyModel]:
    """The shipped model's entropy side: a twin for CPUs and the int64 reference."""
    if request.param == "int8" and not integer.int8_is_exact():
        pytest.skip("this processor has no int8 products with int32 sums")
    return tuple(released.load("swift", None, backend).entropy for backend in (request.param, "reference"))


def extreme_layer(inputs: int, outputs: int, shift: int, generator: torch.Generator) -> IntegerLayer:
    """Every channel reaches 2^24 - 1, rounding term included, when inputs of +-127 have its weights' signs."""
    shift = torch.full((outputs,), shift, dtype=torch.int32)
    half = 1 << (int(shift[0]) - 1)
    weight = torch.randint(60, 128, (outputs, inputs), generator=generator)
    budget = (EXACT_LIMIT - 1 - half) // 127
    for row in weight:
        total = row.cumsum(0)
        row[total > budget] = 0
    bias = EXACT_LIMIT - 1 - half - 127 * weight.sum(1)
    assert bias.min() >= 0
    weight *= torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
    layer = IntegerLayer(weight.to(torch.int8), bias.to(torch.int32), shift, -WIDE, WIDE)
    assert (accumulator_bound(layer.weight, layer.bias, layer.shift) == EXACT_LIMIT - 1).all()
    return layer


def assert_equal_layers(x: torch.Tensor, layer: IntegerLayer, row: int | None = None) -> torch.Tensor:
    expected = linear_reference(x, layer, row)
    with exact_float32():
        got = linear(x.float(), layer, row)
    assert torch.equal(got.long(), expected)
    if integer.int8_is_exact():
        got = integer.linear_int8(x.to(torch.int8), layer, row)
        assert got.dtype == (torch.int8 if -128 <= layer.low <= layer.high <= 127 else torch.int32)
        assert torch.equal(got.long(), expected)
    return expected


# ---- the layer


@pytest.mark.parametrize(
    "inputs, outputs, positions", [(1, 1, 1), (7, 5, 3), (64, 256, 33), (576, 128, 100), (3072, 256, 9)]
)
def test_the_layers_for_cpus_equal_the_reference(inputs, outputs, positions, generator):
    largest = min(127, EXACT_LIMIT // (inputs * 127 * 2))
    weight = torch.randint(-largest, largest + 1, (outputs, inputs), generator=generator).to(torch.int8)
    bias = torch.randint(-(2**20), 2**20, (outputs,), generator=generator, dtype=torch.int32)
    shift = torch.randint(1, MAX_SHIFT + 1, (outputs,), generator=generator, dtype=torch.int32)
    x = torch.randint(-127, 128, (2, positions, inputs), generator=generator)
    for low, high in ((-WIDE, WIDE), (0, 127), (-127, 127), (0, 63), (-(2**15), 2**15 - 1)):
        out = assert_equal_layers(x, IntegerLayer(weight, bias, shift, low, high))
        assert out.shape == (2, positions, outputs)
        assert low <= int(out.min()) <= int(out.max()) <= high


@pytest.mark.parametrize("shift", [1, 2, 9, 23])
@pytest.mark.parametrize("inputs", [1100, 3072])
def test_the_float32_layer_is_exact_to_the_last_bit_of_the_bound(inputs, shift, generator):
    layer = extreme_layer(inputs, 40, shift, generator)
    sign = layer.weight.long().sign()
    worst = torch.cat([127 * sign, -127 * sign, torch.randint(-127, 128, (50, inputs), generator=generator)])
    out = assert_equal_layers(worst, layer)
    assert int(out[:40].diagonal().max()) == (EXACT_LIMIT - 1) >> shift
    # In any order of summation: shuffled inputs, and the same in blocks.
    order = torch.randperm(inputs, generator=generator)
    shuffled = dataclasses.replace(layer, weight=layer.weight[:, order].contiguous())
    assert torch.equal(assert_equal_layers(worst[:, order], shuffled), out)


def test_past_the_bound_float32_does_go_wrong():
    """Why the exporter proves it: one step further, and the twins differ."""
    weight = torch.full((1, 1041), 127, dtype=torch.int8)
    layer = IntegerLayer(
        weight, torch.tensor([0], dtype=torch.int32), torch.tensor([1], dtype=torch.int32), -WIDE, WIDE
    )
    x = torch.full((64, 1041), 127)
    x[:, 0] = torch.arange(64)
    assert accumulator_bound(weight, layer.bias, layer.shift) > EXACT_LIMIT
    with exact_float32():
        assert not torch.equal(linear(x.float(), layer).long(), linear_reference(x, layer))


def test_each_row_of_biases(generator):
    weight = torch.randint(-127, 128, (8, 20), generator=generator).to(torch.int8)
    bias = torch.randint(-(2**20), 2**20, (100, 8), generator=generator, dtype=torch.int32)
    layer = IntegerLayer(weight, bias, torch.full((8,), 3, dtype=torch.int32), -WIDE, WIDE)
    x = torch.randint(-127, 128, (1, 5, 20), generator=generator)
    rows = [assert_equal_layers(x, layer, row) for row in (0, 41, 99)]
    assert not torch.equal(rows[0], rows[1])


def test_shifts_round_half_up_for_negatives_too():
    """(v + 2^(s-1)) >> s is floor(v / 2^s + 1/2): -1.5 becomes -1, -2.5 becomes -2; a division would truncate."""
    expected = {1: [-3, -2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3, 3], 2: [-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2]}
    values = torch.arange(-6, 7)
    for shift, results in expected.items():
        one = torch.tensor([1], dtype=torch.int8)
        layer = IntegerLayer(one[:, None], torch.zeros(1, dtype=torch.int32), one.int() * shift, -WIDE, WIDE)
        assert assert_equal_layers(values[:, None], layer).flatten().tolist() == results
        shifts = torch.tensor([shift], dtype=torch.int32)
        functions = (
            (integer.shift_right_reference, torch.int64),
            (integer.shift_right, torch.float32),
            (integer.shift_right_int8, torch.int32),
        )
        for function, dtype in functions:
            assert function(values[:, None].to(dtype), shifts, -99, 99).flatten().long().tolist() == results


def test_shift_right_equals_its_reference_over_the_range_of_latents(generator):
    shift = torch.randint(1, 16, (256,), generator=generator, dtype=torch.int32)
    largest = 16 * (2**15 - 1) + 2**15  # the largest symbol on the largest mean
    x = torch.randint(-largest, largest + 1, (400, 256), generator=generator)
    x[0], x[1] = largest, -largest
    for low, high in ((-127, 127), (-WIDE, WIDE)):
        expected = integer.shift_right_reference(x, shift, low, high)
        assert torch.equal(integer.shift_right(x.float(), shift, low, high).long(), expected)
        if low == -127:
            assert torch.equal(integer.shift_right_int8(x.int(), shift, low, high).long(), expected)


def test_the_3x3_gather_and_the_shuffle_are_those_of_the_convolutions(generator):
    x = torch.randint(-127, 128, (2, 5, 7, 4), generator=generator).double()
    weight = torch.randint(-127, 128, (3, 4, 3, 3), generator=generator).double()
    dense = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
    assert torch.equal(integer.rows_3x3(x) @ weight.permute(0, 2, 3, 1).flatten(1).T, dense)
    shuffled = torch.nn.functional.pixel_shuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert torch.equal(integer.pixel_shuffle_2(x), shuffled)


# ---- the proof


def sound_layer() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.full((8, 3072), 40, dtype=torch.int8),
        "bias": torch.full((8,), 1000, dtype=torch.int32),
        "shift": torch.full((8,), 10, dtype=torch.int32),
    }


def test_one_channel_that_breaks_the_bound_is_refused_by_layer_and_channel():
    layer = sound_layer()
    integer_layer("g_cm", **layer)
    layer["weight"][5] = 44
    with pytest.raises(ExactnessError, match=r"layer g_cm: output channel 5 can reach 17\d{6}"):
        integer_layer("g_cm", **layer)


def test_the_bound_is_sharp():
    layer = sound_layer()
    room = EXACT_LIMIT - 1 - 127 * 40 * 3072 - 512
    for sign in (1, -1):
        layer["bias"][3] = sign * room
        integer_layer("g_cm", **layer)
        layer["bias"][3] = sign * (room + 1)
        with pytest.raises(ExactnessError, match=r"output channel 3 can reach 16777216"):
            integer_layer("g_cm", **layer)


def test_each_quality_has_to_keep_the_bound():
    layer = sound_layer() | {"bias": torch.zeros(100, 8, dtype=torch.int32)}
    integer_layer("g_ep.first", **layer)
    layer["bias"][73, 2] = -(2**23)
    with pytest.raises(ExactnessError, match=r"g_ep\.first: output channel 2 "):
        integer_layer("g_ep.first", **layer)


@pytest.mark.parametrize("shift", [0, -1, 25, 64, 2**31 - 2])
def test_shifts_out_of_range_are_refused(shift):
    layer = sound_layer()
    layer["shift"][1] = shift
    with pytest.raises(ExactnessError, match="layer g_cm"):
        integer_layer("g_cm", **layer)


def test_a_weight_of_minus_128_is_refused():
    layer = sound_layer()
    layer["weight"][1, 1] = -128
    with pytest.raises(ExactnessError, match="weights within"):
        integer_layer("g_cm", **layer)


def test_a_stored_model_that_breaks_the_bound_does_not_load():
    tensors = export_entropy_side(trained_like(SwiftConfig()))
    EntropyModel(tensors)
    tensors["g_ep.means.bias"][17] = 2**24
    for backend in (None, "float32", "reference"):
        with pytest.raises(ExactnessError, match=r"g_ep\.means: output channel 17"):
            EntropyModel(tensors, backend)


def test_a_back_end_that_is_not_exact_here_is_refused(monkeypatch):
    tensors = export_entropy_side(trained_like(SwiftConfig()))
    monkeypatch.setattr(integer, "int8_is_exact", lambda: False)
    assert EntropyModel(tensors).backend == "float32"
    with pytest.raises(ExactnessError, match="int8 matrix product is not exact"):
        EntropyModel(tensors, "int8")
    monkeypatch.setattr(integer, "float32_is_exact", lambda: False)
    for backend in (None, "float32"):
        with pytest.raises(ExactnessError, match="float32 matrix product is not exact"):
            EntropyModel(tensors, backend)
    assert EntropyModel(tensors, "reference").backend == "reference"


@pytest.mark.parametrize("fault", ["saturation", "halved weights"])
def test_int8_products_that_are_not_exact_are_found(fault, monkeypatch):
    """What libraries do on processors without VNNI: pairs of products in 16 bits, or weights of 7 bits."""

    def int_mm(x, w):
        x, w = x.int(), w.int()
        if fault == "halved weights":
            return (x @ (w // 2)) * 2
        x = x + 128  # such instructions multiply bytes without a sign by bytes with one
        total = -128 * w.sum(0).expand(len(x), -1).int()
        for left, right in zip(x.T.split(2), w.split(2), strict=True):
            total += (left.T @ right).clamp(-(2**15), 2**15 - 1)
        return total

    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch, "_int_mm", int_mm)
    integer.int8_is_exact.cache_clear()
    try:
        assert not integer.int8_is_exact()
    finally:
        integer.int8_is_exact.cache_clear()


def trained_like(config: SwiftConfig, seed: int = 3) -> Swift:
    """A model whose every parameter of the entropy side is random and matters."""
    torch.manual_seed(seed)
    shift = torch.randint(1, 7, (config.latents,), dtype=torch.int32)
    model = Swift(config, shift)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("h_s.", "groups.")) and name.endswith(("bias", "points")):
                parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("factor", [5.0, 30.0])
def test_large_weights_get_smaller_exponents(factor):
    """Weights that int8 products could carry past 2^24 are stored more coarsely; the proof holds for what comes out."""
    model = trained_like(SwiftConfig())
    ordinary = export_entropy_side(model)
    with torch.no_grad():
        model.groups[0].context.weight *= factor
    tensors = export_entropy_side(model)
    assert (tensors["g_cm.shift"] < ordinary["g_cm.shift"]).all()
    parts = [tensors[f"g_cm.{part}"] for part in ("weight", "bias", "shift")]
    assert (accumulator_bound(*parts) < EXACT_LIMIT).all()


def test_exponents_are_the_largest_that_keep_the_bound(generator):
    """A 3072-input channel of equal weights can hold 43 at most: the exponent that would make them 64 is not taken."""
    weight = torch.full((1, 3072), 0.5)
    exponent = weight_exponents(weight, torch.zeros(1), 4, 4)
    assert exponent.tolist() == [6]
    assert weight_exponents(weight[:, :100], torch.zeros(1), 4, 4).tolist() == [7]


def test_weights_too_large_for_any_exponent_are_refused_by_layer_and_channel():
    for factor in (3000.0, 1e12):
        model = trained_like(SwiftConfig())
        with torch.no_grad():
            model.groups[0].context.weight[116] *= factor
        with pytest.raises(ExactnessError, match="layer g_cm: output channel 116 can reach"):
            export_entropy_side(model)


@pytest.mark.parametrize("value", [1e12, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["h_s.head.bias", "groups.0.context.bias", "groups.0.quality_bias.points"])
def test_blown_up_biases_are_refused(name, value):
    model = trained_like(SwiftConfig())
    with torch.no_grad():
        model.get_parameter(name)[3] = value
    layer = {"h": "h_s.head", "c": "g_cm", "q": "g_ep.first"}[name.removeprefix("groups.0.")[0]]
    with pytest.raises(ExactnessError, match=f"layer {layer}: " if value == 1e12 else f"{name} is not finite"):
        export_entropy_side(model)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_refused(value):
    model = trained_like(SwiftConfig())
    with torch.no_grad():
        model.h_s.head.weight[0, 0, 0, 0] = value
    with pytest.raises(ExactnessError, match=r"h_s\.head\.weight is not finite"):
        export_entropy_side(model)


# ---- the whole entropy side


def run(model: EntropyModel, z, symbols, height, width, quality) -> list[torch.Tensor]:
    """psi, then each group's means and indexes. symbols: of the anchors and of the non-anchors."""
    with exact_float32():
        psi_anchors, psi_non_anchors = model.hyper_synthesis(z, height, width)
        results, known = [psi_anchors.long(), psi_non_anchors.long()], [None, None]
        for number, channels in enumerate(model.groups):
            first = model.anchor_parameters(psi_anchors, quality, number, known[0])
            anchors = reconstruct(symbols[0][..., channels], first.means)
            second = model.non_anchor_parameters(psi_non_anchors, anchors, (height, width), quality, number, known[1])
            non_anchors = reconstruct(symbols[1][..., channels], second.means)
            decoded = anchors, non_anchors
            known = [new if old is None else torch.cat([old, new], 2) for old, new in zip(known, decoded, strict=True)]
            results += [first.means, first.indexes, second.means, second.indexes]
    return results


def halves(batch, height, width, latents, spread, generator) -> list[torch.Tensor]:
    """Random symbols of the anchors and of the non-anchors."""
    counts = -(-height * width // 2), height * width // 2
    shapes = ((batch, count, latents) for count in counts)
    return [torch.randint(-spread, spread + 1, shape, generator=generator).to(torch.int16) for shape in shapes]


SHAPES = [(1, 1, 1), (1, 1, 9), (1, 13, 1), (3, 2, 2), (2, 5, 7), (7, 3, 4), (1, 17, 6), (2, 16, 19)]


@pytest.mark.parametrize("batch, height, width", SHAPES)
@pytest.mark.parametrize("spread", [3, 300])
def test_the_twins_equal_the_reference_on_random_latents(batch, height, width, spread, both, generator):
    fast, reference = both
    config = released.load("swift").config
    z_shape = (batch, -(-height // 4), -(-width // 4), config.hyper_latents)
    z = torch.randint(-spread, spread + 1, z_shape, generator=generator).to(torch.int16)
    symbols = halves(batch, height, width, config.latents, spread, generator)
    if spread > 100:  # and what only a hostile stream holds
        z.flatten()[::7] = 2**15 - 1
        for half in symbols:
            half.flatten()[::11] = -(2**15)
            half.flatten()[::13] = 2**15 - 1
    quality = int(torch.randint(1, 101, (), generator=generator))
    results = [run(model, z, symbols, height, width, quality) for model in (fast, reference)]
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)
    means, indexes = results[0][2:4]
    assert means.dtype == torch.int32
    assert indexes.dtype == torch.uint8
    assert int(indexes.max()) < 64


def test_hyper_latents_and_latents_are_clamped_to_their_declared_ranges(both, generator):
    """The proof counts on inputs of +-127, and only a stream can be trusted to hold nothing else."""
    config = released.load("swift").config
    z = torch.randint(-(2**15), 2**15, (1, 2, 2, config.hyper_latents), generator=generator).to(torch.int16)
    largest = 16 * (2**15 - 1) + 2**15
    latents = torch.randint(-largest, largest + 1, (1, 20, config.latents), generator=generator, dtype=torch.int32)
    *_, last = released.load("swift").entropy.groups
    number, before = len(released.load("swift").entropy.groups) - 1, slice(0, last.start)
    shift = released.load("swift").entropy.context_shift
    for model in both:
        with exact_float32():
            psi = torch.zeros_like(model.hyper_synthesis(z, 8, 5)[1])
            clamped = model.hyper_synthesis(z.clamp(-127, 127), 8, 5)
            for ours, theirs in zip(model.hyper_synthesis(z, 8, 5), clamped, strict=True):
                assert torch.equal(ours, theirs)
            bounded = latents.clamp(-(127 << shift), 127 << shift)
            far, near = (
                model.non_anchor_parameters(psi, y[..., last], (8, 5), 50, number, y[..., before] if number else None)
                for y in (latents, bounded)
            )
        assert torch.equal(far.means, near.means)
        assert torch.equal(far.indexes, near.indexes)


def test_a_batch_equals_its_items(both, generator):
    fast, _ = both
    config = released.load("swift").config
    z = torch.randint(-20, 21, (5, 2, 3, config.hyper_latents), generator=generator).to(torch.int16)
    symbols = halves(5, 8, 11, config.latents, 20, generator)
    together = run(fast, z, symbols, 8, 11, 50)
    for i in range(5):
        alone = run(fast, z[i : i + 1], [half[i : i + 1] for half in symbols], 8, 11, 50)
        for all_items, item in zip(together, alone, strict=True):
            assert torch.equal(all_items[i : i + 1], item)


@pytest.mark.slow
def test_the_twins_equal_the_reference_on_every_kodak_image(kodak):
    """Whole images, over the range of qualities: all decode every stream that this machine's fastest wrote, to the same
    latents. A parameter that differed in one bit would read the stream with another table."""
    codec = Codec.load()
    others = [Codec(released.load("swift", None, backend)) for backend in ("float32", "reference")]

    def equal(number: int) -> bool:
        data = codec.encode(read_picture(kodak[number]), 1 + 99 * number // max(1, len(kodak) - 1))
        latents = codec.latents(data)
        return all(torch.equal(latents, other.latents(data)) for other in others)

    with ThreadPoolExecutor(2) as pool:  # int64 products run on one core each
        for path, same in zip(kodak, pool.map(equal, range(len(kodak))), strict=True):
            assert same, path.name


# ---- surroundings


@pytest.fixture
def precision():
    yield
    for setting in (torch.backends, torch.backends.mkldnn, torch.backends.mkldnn.matmul):
        setting.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def lower_legacy() -> None:
    torch.set_float32_matmul_precision("medium")


def lower_everything() -> None:
    torch.backends.fp32_precision = "bf16"


def lower_products() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


@pytest.mark.parametrize("lower", [lower_legacy, lower_everything, lower_products])
def test_a_lower_precision_elsewhere_does_not_reach_the_integers(lower, precision, generator):
    """They are harmless: bfloat16 and TF32 hold the factors exactly, and the sums stay in float32."""
    layer = extreme_layer(1100, 64, 2, generator)
    x = torch.cat([127 * layer.weight.long().sign(), torch.randint(-127, 128, (500, 1100), generator=generator)])
    lower()
    assert_equal_layers(x, layer)
    assert integer.float32_is_exact()


@pytest.mark.parametrize("lower", [lower_legacy, lower_everything, lower_products])
def test_a_lower_precision_elsewhere_does_not_reach_a_file(lower, precision, photographs):
    codec = Codec.load()
    image = photographs["chelsea"][:120, :150]
    data = codec.encode(image)
    latents, pixels = codec.latents(data), codec.decode(data, out="tensor")
    lower()
    assert torch.equal(codec.latents(data), latents)
    assert int((codec.decode(data, out="tensor").int() - pixels.int()).abs().max()) <= 1


def test_autocast_around_the_codec_changes_nothing(photographs):
    codec = Codec.load()
    image = photographs["chelsea"][:120, :150]
    data = codec.encode(image)
    pixels = codec.decode(data, out="tensor")
    with torch.autocast("cpu", torch.bfloat16):
        assert codec.encode(image) == data
        assert torch.equal(codec.decode(data, out="tensor"), pixels)


def test_another_default_dtype_changes_nothing(photographs):
    codec = Codec.load()
    image = photographs["chelsea"][:120, :150]
    data = codec.encode(image)
    pixels = codec.decode(data, out="tensor")
    torch.set_default_dtype(torch.float64)
    try:
        assert codec.encode(image) == data
        assert torch.equal(codec.decode(data, out="tensor"), pixels)
    finally:
        torch.set_default_dtype(torch.float32)


# ---- what was trained is what runs


@pytest.mark.parametrize("groups", [None, (64, 192), (32, 96, 128)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_trained_network_is_the_exported_one(dtype, groups, generator):
    """The forward pass of quantisation-aware training, on the same integers, gives the integer model's means and
    indexes exactly: its sums are those integers times a power of two, and float32 holds them for the same reason."""
    config = SwiftConfig(groups=groups)
    model = trained_like(config).to(dtype)
    entropy = EntropyModel(export_entropy_side(model), "reference")
    assert entropy.groups == config.group_channels
    model.set_quantise(True)
    height, width = 7, 6
    # All hundred qualities at once, so that the layer with a bias for each sees the largest, as the exporter does.
    z = torch.randint(-40, 41, (100, 2, 2, config.hyper_latents), generator=generator)
    halves = [torch.randint(-6000, 6001, (100, 21, config.latents), generator=generator) for _ in range(2)]
    t = quality_position(torch.arange(1, 101).double()).float()
    found = []
    with torch.no_grad():
        psi = model.h_s(z.permute(0, 3, 1, 2).to(dtype))[:, :, :height, :width].permute(0, 2, 3, 1)
        psi_anchors, psi_non_anchors = checkerboard.split(psi)
        anchors, non_anchors = (half.to(dtype) / 16 for half in halves)
        for group, channels in zip(model.groups, config.group_channels, strict=True):
            earlier = slice(0, channels.start)
            found.append(group(psi_anchors, group.context_at_anchors(anchors[..., earlier]), t))
            phi = group.context_at_non_anchors(anchors[..., channels], non_anchors[..., earlier], height, width)
            found.append(group(psi_non_anchors, phi, t))
        expected_psi = entropy.hyper_synthesis(z, height, width)
    assert torch.equal((psi_anchors * 16).long(), expected_psi[0])
    assert torch.equal((psi_non_anchors * 16).long(), expected_psi[1])
    for quality in (1, 2, 37, 64, 99, 100):
        i = slice(quality - 1, quality)
        expected = []
        for number, channels in enumerate(entropy.groups):
            before = [half[i, :, : channels.start] if number else None for half in halves]
            expected += [
                entropy.anchor_parameters(expected_psi[0][i], quality, number, before[0]),
                entropy.non_anchor_parameters(
                    expected_psi[1][i], halves[0][i, :, channels], (height, width), quality, number, before[1]
                ),
            ]
        for (means, indexes), parameters in zip(found, expected, strict=True):
            assert torch.equal(means[i] * 16, parameters.means.to(dtype))
            assert torch.equal(indexes[i], parameters.indexes.to(dtype))
    second = found[-1]
    # The layers were at work: not all clamped to the ends of their ranges.
    assert 10 < second[0].abs().amax() < 2**11
    assert ((second[1] > 0) & (second[1] < 63)).double().mean() > 0.1
