"""Mixture coding: an independent model of the rule in plain integers, round trips on all twins, rate, errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from coder_passes import Distribution, assert_round_trip, decode_all, distributions, gaussian_pass, slow_decode

from fastcodec.errors import CorruptStreamError, SymbolRangeError
from fastcodec.kernels.rans import _cpu_abi, mixture, passes
from fastcodec.kernels.rans.mixture import frequencies
from fastcodec.rans import Decoder, Mixture, MixturePass, available_isas, cost_bits, encode, quantise_mixtures

ISAS = available_isas()

# ----------------------------------------------------------------------------------------------------------------------
# An independent model: mixture.h's rule, from its comment alone, in 64-bit integers with every stated bound asserted

PHI = np.array([round(2**19 * 0.5 * math.erfc((5 - i / 64) / math.sqrt(2))) for i in range(641)])
RISE = np.append(np.diff(PHI), 0)
SIGMAS = 2.0 ** ((np.arange(256) - 80) / 24)
REACHES = np.array([math.ceil(256 * sigma) for sigma in SIGMAS])  # 4 sigma in 1/64, upwards
SHIFTS = np.array([11 - math.floor(math.log2(2.0**7 / sigma) + 1e-12) for sigma in SIGMAS])
MULTIPLIERS = 4 * np.array([round(2.0 ** (7 + int(e)) / sigma) for e, sigma in zip(SHIFTS, SIGMAS, strict=True)])


def reach(weights, means, scales) -> tuple[int, int]:
    present = [(m, REACHES[s]) for w, m, s in zip(weights, means, scales, strict=True) if w]
    low, high = min(m - r for m, r in present), max(m + r for m, r in present)
    return int(low + 32) // 64, int(high + 32) // 64


def model(weights, means, scales) -> tuple[int, np.ndarray]:
    """The first symbol of an element, and its edges E(0) .. E(n + 1)."""
    first, last = reach(weights, means, scales)
    n = last - first + 1
    assert 1 <= n <= 2279
    j = np.arange(n + 1)
    total = np.zeros(n + 1, dtype=np.int64)
    for weight, mean, scale in zip(weights, means, scales, strict=True):
        product = (64 * (first + j) - 32 - mean) * int(MULTIPLIERS[scale])
        assert np.abs(product).max() < 2**31
        t = np.clip(product >> int(SHIFTS[scale]), -5 * 2**15, 5 * 2**15) + 5 * 2**15
        at, rest = t >> 9, t & 511
        total += weight * (PHI[at] + (RISE[at] * rest >> 9))
    assert total.max() <= 2**31
    scaled = (total >> 13) * (2**14 - 1 - n) + 2**17
    assert scaled.max() < 2**32
    edges = np.append(j + (scaled >> 18), 2**14)
    assert edges[0] == 0
    return first, edges


def grid():
    """Elements of one component: all scales, means at all kinds of places between two symbols, and at the ends."""
    for scale, mean in itertools.product(range(256), (0, 1, 15, 31, 32, 33, 63, -7, -32, -33)):
        yield [4096], [mean], [scale]
    for scale, mean in itertools.product((0, 1, 80, 254, 255), (-32768, 32767, 12345)):
        yield [4096], [mean], [scale]


def random_elements(count: int, seed: int, widest: int = 32767):
    """Elements of 1 to 4 components, near and far apart; some weights are 0 or nearly so."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        k = 1 + i % 4
        spread = int(rng.choice([100, 1280, widest]))
        edges = np.sort(rng.integers(0, 4097, k - 1))
        if i % 5 == 0:
            edges = edges // 4096 * 4096  # all weights but one are 0
        weights = np.diff(edges, prepend=0, append=4096)
        yield weights.tolist(), rng.integers(-spread, spread + 1, k).tolist(), rng.integers(0, 256, k).tolist()


def corners():
    """The widest reach, components that lie outside the others' tables, and equal components."""
    yield [2048, 2048], [-32768, 32767], [255, 255]
    yield [4095, 1], [-32768, 32767], [0, 255]
    yield [1, 4095], [-32768, 32767], [255, 0]
    yield [1, 1, 1, 4093], [0, 0, 0, 0], [10, 100, 200, 255]
    yield [0, 4096, 0, 0], [-32768, 5, 32767, 100], [255, 3, 255, 80]


# ----------------------------------------------------------------------------------------------------------------------
# The rule


def test_constants():
    constants = dict(_cpu_abi.mixture_constants())
    assert constants.pop("max_components") == passes.MAX_COMPONENTS
    assert constants == {name: getattr(mixture, name.upper()) for name in constants}


def test_model_is_the_normal_distribution():
    # The model itself: each edge is near the one of exact arithmetic, so it cannot share a mistake with the kernels.
    for weights, means, scales in [*random_elements(200, 1, 3000), *corners()]:
        first, edges = model(weights, means, scales)
        n = len(edges) - 2
        x = first + np.arange(1, n + 1) - 0.5
        exact = sum(
            w / 4096 * np.array([0.5 * math.erfc((m / 64 - v) / SIGMAS[s] / math.sqrt(2)) for v in x])
            for w, m, s in zip(weights, means, scales, strict=True)
        )
        assert np.abs(edges[1:-1] - (np.arange(1, n + 1) + exact * (2**14 - 1 - n))).max() < 2


@pytest.mark.parametrize(
    "elements", [grid, corners, lambda: random_elements(1500, 2)], ids=["grid", "corners", "random"]
)
def test_frequencies_are_those_of_the_rule(elements):
    for weights, means, scales in elements():
        first, edges = model(weights, means, scales)
        found_first, found = frequencies(weights, means, scales)
        assert found_first == first
        assert np.array_equal(found, np.diff(edges)), (weights, means, scales)
        assert found.min() >= 1
        assert found.sum(dtype=np.int64) == 2**14
        # Every symbol within 4 sigma of a component is in reach.
        for weight, mean, scale in zip(weights, means, scales, strict=True):
            for side in (-4, 4):
                symbol = math.floor(mean / 64 + side * SIGMAS[scale] + 0.5)
                assert weight == 0 or first <= symbol <= first + len(found) - 2


def test_moving_and_mirroring():
    for weights, means, scales in random_elements(200, 3, 8000):
        first, found = frequencies(weights, means, scales)
        moved_first, moved = frequencies(weights, [m + 64 * 17 for m in means], scales)
        assert moved_first == first + 17
        assert np.array_equal(moved, found)
        order = slice(None, None, -1)
        assert np.array_equal(frequencies(weights[order], means[order], scales[order])[1], found)
        # Rounding is not symmetric, and a bound between two symbols belongs to the upper one.
        mirrored_first, mirrored = frequencies(weights, [-m for m in means], scales)
        assert abs(-mirrored_first - (first + len(found) - 2)) <= 1
        own = dict(zip(range(first, first + len(found) - 1), found.tolist(), strict=False))
        other = dict(zip(range(mirrored_first, mirrored_first + len(mirrored) - 1), mirrored.tolist(), strict=False))
        assert all(abs(own[symbol] - other[-symbol]) <= 3 for symbol in own.keys() & {-s for s in other})


# ----------------------------------------------------------------------------------------------------------------------
# Passes


def pass_of(elements, shape, seed=0, escapes=0.0) -> MixturePass:
    """A pass of these elements in turn, which have one number of components; symbols are as likely as their slots."""
    rng = np.random.default_rng(seed)
    k = len(elements[0][0])
    elements = list(itertools.islice(itertools.cycle(elements), math.prod(shape)))
    symbols = np.zeros(len(elements), dtype=np.int16)
    for i, element in enumerate(elements):
        first, edges = model(*element)
        entry = int(np.searchsorted(edges, rng.integers(0, 2**14), side="right")) - 1
        sentinel = entry == len(edges) - 2 or rng.random() < escapes
        symbols[i] = rng.integers(-32768, 32768) if sentinel else first + entry
    planes = [np.array([element[part] for element in elements]).T.reshape(k, *shape) for part in range(3)]
    return MixturePass(
        torch.from_numpy(symbols.reshape(shape)),
        *(
            torch.from_numpy(np.ascontiguousarray(plane))
            for plane in (planes[0].astype(np.int16), planes[1].astype(np.int16), planes[2].astype(np.uint8))
        ),
    )


def mixture_pass(shape, components=3, seed=0, escapes=0.0) -> MixturePass:
    elements = [e for e in random_elements(80, seed) if len(e[0]) == components]
    return pass_of(elements + [e for e in corners() if len(e[0]) == components], shape, seed, escapes)


def mixture_distributions(item: MixturePass) -> list[list[Distribution]]:
    planes = [tensor.permute(1, 2, 0).tolist() for tensor in item[1:]]
    return [[model(*element) for element in zip(*row, strict=True)] for row in zip(*planes, strict=True)]


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("components", [1, 2, 3, 4])
def test_round_trip(components, lanes):
    for streams, shape in ((1, (23, 11)), (3, (40, 3)), (7, (5, 37))):
        assert_round_trip([mixture_pass(shape, components, seed=lanes, escapes=0.02)], lanes=lanes, streams=streams)


@pytest.mark.parametrize("lanes", [1, 8, 32])
def test_independent_decoder(lanes):
    # Hyper latents by tables, then anchors and non-anchors by mixtures, on one set of states.
    tile = [gaussian_pass((9, 8), 1), mixture_pass((13, 16), 3, 2, 0.05), mixture_pass((12, 16), 3, 3, 0.05)]
    payload = assert_round_trip(tile, lanes=lanes, streams=1)
    decoded = slow_decode(payload, [distributions(tile[0]), *map(mixture_distributions, tile[1:])])
    for item, symbols in zip(tile, decoded, strict=True):
        assert np.array_equal(symbols, item.symbols.numpy())


def test_passes_in_any_order():
    shapes = [(30, 12), (0, 12), (31, 12), (1, 1)]
    tiles = [
        [mixture_pass(shape, 2, 4), gaussian_pass(shape, 5), mixture_pass(shape, 3, 6, 0.01), gaussian_pass(shape, 7)]
        for shape in shapes
    ]
    payloads = encode(tiles)
    for tile, decoded in zip(tiles, decode_all(payloads, tiles), strict=True):
        for item, symbols in zip(tile, decoded, strict=True):
            assert torch.equal(symbols, item.symbols)
    assert payloads == [encode([tile])[0] for tile in tiles]


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("scale", [100, 160, 200, 210, 221, 235, 255])
def test_every_entry_of_few_lanes(scale, lanes):
    """At the ends of a wide reach an entry has a slot or two: there a search that guesses is off by several entries."""
    for element in (([4096], [5], [scale]), ([1000, 3000, 96], [-9, 640, 77], [scale, scale - 7, scale // 2])):
        first, edges = model(*element)
        symbols = np.repeat(np.arange(first - 2, first + len(edges) + 1, dtype=np.int16), 2)[:, None]
        item = pass_of([element], symbols.shape)._replace(symbols=torch.from_numpy(symbols))
        assert_round_trip([item], lanes=lanes, streams=1)


def test_extreme_symbols_and_int32():
    for element in corners():
        item = pass_of([element], (4, 8))
        first, edges = model(*element)
        values = [-32768, 32767, first, first + len(edges) - 3, first - 1, first + len(edges) - 2, first + 1, 0]
        symbols = torch.tensor([values] * 4, dtype=torch.int32)
        payload = assert_round_trip([item._replace(symbols=symbols)], lanes=8, streams=1)
        assert encode([[item._replace(symbols=symbols.to(torch.int16))]], lanes=8, streams=1) == [payload]


# ----------------------------------------------------------------------------------------------------------------------
# Rate


def drawn(shape, components, least, greatest, far, seed):
    """Symbols drawn from mixtures of floats, their ideal code length in bits, and the pass."""
    rng = np.random.default_rng(seed)
    weights = np.moveaxis(rng.dirichlet([1.0] * components, shape), -1, 0)
    means = rng.uniform(-far, far, (components, *shape))
    sigmas = np.exp(rng.uniform(math.log(least), math.log(greatest), (components, *shape)))
    pick = (rng.random(shape) > np.cumsum(weights, 0)[:-1]).sum(0)[None]
    centre, width = (np.take_along_axis(values, pick, 0)[0] for values in (means, sigmas))
    symbols = np.rint(rng.normal(size=shape) * width + centre)

    def upper(z):
        return torch.special.ndtr(torch.from_numpy(-z)).numpy()

    # Of the two tails the smaller: no digits are lost.
    from_mean = np.abs(symbols - means)
    mass = (weights * (upper((from_mean - 0.5) / sigmas) - upper((from_mean + 0.5) / sigmas))).sum(0)
    tensors = quantise_mixtures(*map(torch.from_numpy, (weights, means, sigmas)))
    return -np.log2(mass).sum(), MixturePass(torch.from_numpy(symbols.astype(np.int16)), *tensors)


@pytest.mark.parametrize(
    "components, least, greatest, far",
    [(3, 0.11, 64, 20), (3, 0.11, 0.5, 20), (3, 0.11, 2, 2), (3, 40, 64, 20), (1, 0.11, 64, 20), (4, 0.11, 64, 20)],
)
def test_rate(components, least, greatest, far):
    ideal, item = drawn((1000, 192), components, least, greatest, far, seed=5)
    assert cost_bits(item) < 1.003 * ideal
    [payload] = encode([[item]], lanes=32, streams=1)
    assert 8 * len(payload) < 1.003 * ideal + 32 * 32 + 64


def test_nearly_certain_symbols():
    # The one symbol in reach has all slots but the sentinel's: 8.8e-5 bits.
    shape = (1000, 64)
    parameters = quantise_mixtures(torch.ones(3, *shape), torch.zeros(3, *shape), torch.full((3, *shape), 0.11))
    item = MixturePass(torch.zeros(shape, dtype=torch.int16), *parameters)
    assert cost_bits(item) / 64000 <= 1 / 256
    [payload] = encode([[item]], lanes=1, streams=1)
    assert 8 * len(payload) / 64000 < 1e-4 + 64 / 64000


def test_cost_is_the_sum_of_code_lengths():
    item = mixture_pass((20, 10), 3, 9, 0.05)
    exact = 0.0
    planes = [tensor.reshape(3, -1).T.tolist() for tensor in item[1:]]
    for symbol, *element in zip(item.symbols.flatten().tolist(), *planes, strict=True):
        first, edges = model(*element)
        entry = symbol - first if first <= symbol < first + len(edges) - 2 else len(edges) - 2
        exact += 14 - math.log2(edges[entry + 1] - edges[entry]) + (16 if entry == len(edges) - 2 else 0)
    assert exact <= cost_bits(item) <= exact + 200 / 256


# ----------------------------------------------------------------------------------------------------------------------
# Errors


def test_quantise():
    weights = torch.tensor([[0.2, 1.0, 0.0], [0.6, 0.0, 1e-6], [0.2, 0.0, 1.0]])
    means = torch.tensor([[0.25, 1e6, -1e6], [0.0, -0.008, 0.008], [-3.0, 511.99, -512.0]])
    sigmas = torch.tensor([[1.0, 2.0, 0.5], [64.0, 1e-9, 1e9], [0.11, 1.0, 1.0]])
    integers = quantise_mixtures(weights, means, sigmas)
    assert isinstance(integers, Mixture)
    assert [t.dtype for t in integers] == [torch.int16, torch.int16, torch.uint8]
    assert integers[0].tolist() == [[819, 4096, 0], [2458, 0, 0], [819, 0, 4096]]
    assert integers[1].tolist() == [[16, 32767, -32768], [0, -1, 1], [-192, 32767, -32768]]
    assert integers[2].tolist() == [[80, 104, 56], [224, 0, 255], [4, 80, 80]]


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "bad",
    [
        {"weights": (0.0, 0.0)},
        {"weights": (NAN, 1.0)},
        {"weights": (INF, 1.0)},
        {"weights": (-1.0, 2.0)},
        {"weights": (2.0, -1.0)},
        {"weights": (-1.0, -2.0)},
        {"means": (5.0, NAN)},
        {"sigmas": (NAN, 1.0)},
        {"sigmas": (1.0, -1.0)},
    ],
    ids=str,
)
def test_what_is_no_mixture_is_refused_by_the_coder(bad):
    """The element that is none, and no other, has weights of 0, and integers that do not depend on the machine."""
    floats = {"weights": torch.ones(2, 3, 40), "means": torch.full((2, 3, 40), 5.0), "sigmas": torch.ones(2, 3, 40)}
    good = quantise_mixtures(**floats)
    for name, values in bad.items():
        floats[name][:, 1, 7] = torch.tensor(values)
    mixture = quantise_mixtures(**floats)
    assert mixture.weights[:, 1, 7].tolist() == [0, 0]
    for name, values in bad.items():
        wanted = {"means": [320, 0], "sigmas": [0 if not value > 0 else 80 for value in values]}.get(name)
        found = mixture.means if name == "means" else mixture.scales
        assert wanted is None or found[:, 1, 7].tolist() == wanted
    elsewhere = torch.ones(3, 40, dtype=torch.bool)
    elsewhere[1, 7] = False
    for part, wanted in zip(mixture, good, strict=True):
        assert torch.equal(part[:, elsewhere], wanted[:, elsewhere])
    symbols = torch.full((3, 40), 5, dtype=torch.int16)
    [payload] = encode([[MixturePass(symbols, *good)]])
    with pytest.raises(ValueError, match="tile 0, pass 0: the weights of an element do not sum to 4096"):
        encode([[MixturePass(symbols, *mixture)]])
    with pytest.raises(ValueError, match="tile 0: the weights of an element do not sum to 4096"):
        Decoder([payload]).decode_mixtures([mixture])


def test_infinite_means_and_sigmas_are_clamped():
    mixture = quantise_mixtures(torch.ones(4), torch.tensor([INF, -INF, 0, 0]), torch.tensor([1.0, 1.0, INF, 0.0]))
    assert [part.tolist() for part in mixture] == [[1024] * 4, [32767, -32768, 0, 0], [80, 80, 255, 0]]


def test_shapes_that_are_no_mixture():
    def refused(*shapes):
        with pytest.raises(ValueError, match=r"of one shape \[components, ...\]|1 to 4 components"):
            quantise_mixtures(*map(torch.ones, shapes))

    refused((5, 2, 2), (5, 2, 2), (5, 2, 2))
    refused((0, 2, 2), (0, 2, 2), (0, 2, 2))
    refused((), (), ())
    refused((3, 2, 2), (3, 2, 2), (2, 2, 2))
    refused((3, 2, 2), (3, 2, 1), (3, 2, 2))  # would broadcast
    refused((3, 2, 2), (3, 2, 2), (2, 2))
    for components in (1, 4):
        assert quantise_mixtures(*[torch.ones(components, 0, 5)] * 3).scales.shape == (components, 0, 5)


def test_bad_parameters():
    good = mixture_pass((4, 5), 3)
    [payload] = encode([[good]])

    def refused(match, **changes):
        item = good._replace(**changes)
        with pytest.raises(ValueError, match=match):
            encode([[good], [good, item]])
        if "symbols" not in changes:
            with pytest.raises(ValueError, match=match.replace("tile 1, pass 1", "tile 1")):
                Decoder([payload] * 2).decode_mixtures([good[1:], item[1:]])

    wrong = good.weights.clone()
    wrong[1, 3, 4] += 1
    refused("tile 1, pass 1: the weights of an element do not sum to 4096", weights=wrong)
    short = good.weights.clone()
    short[0, 0, 0] = 0
    short[1:, 0, 0] = 1
    refused("do not sum to 4096", weights=short)
    negative = good.weights.clone()
    negative[0] = -1
    negative[1] = 4097
    negative[2] = 0
    refused("do not sum to 4096", weights=negative)
    refused("tile 1, pass 1: weights must be contiguous", weights=good.weights.int())
    refused("tile 1, pass 1: means must be contiguous", means=good.means.float())
    refused("tile 1, pass 1: scales must be contiguous", scales=good.scales[:2])
    refused("not contiguous", means=good.means.transpose(1, 2).contiguous().transpose(1, 2))
    refused("tile 1, pass 1: symbols must be", symbols=good.symbols.float())
    refused("tile 1, pass 1: symbols must be", symbols=good.symbols[:3])
    with pytest.raises(ValueError, match="1 to 4 components, not 5"):
        encode([[MixturePass(good.symbols, *(t[:1].repeat(5, 1, 1) for t in good[1:]))]])
    with pytest.raises(SymbolRangeError, match="tile 0, pass 1: a symbol does not fit int16"):
        encode([[good, good._replace(symbols=good.symbols.int() + 70000)]])
    with pytest.raises(ValueError, match="lanes must be"):
        encode([[good]], lanes=3)
    with pytest.raises(ValueError, match="one mixture for each of the 1 tiles is needed, not 0"):
        Decoder([payload]).decode_mixtures([])
    with pytest.raises(ValueError, match="tile 0: a mixture is weights, means and scales, not 4 things"):
        Decoder([payload]).decode_mixtures([good])
    with pytest.raises(ValueError, match="weights must be contiguous"):
        Decoder([payload] * 3).decode_mixtures(Mixture(*good[1:]))  # one mixture, and not one for each tile
    with pytest.raises(ValueError, match="sum to 4096"):
        frequencies([4095], [0], [0])


def test_a_refused_pass_leaves_the_decoder_as_it_was():
    item = mixture_pass((6, 9), 3)
    [payload] = encode([[item]])
    decoder = Decoder([payload])
    with pytest.raises(ValueError):
        decoder.decode_mixtures([(item.weights + 1, item.means, item.scales)])
    assert torch.equal(decoder.decode_mixtures([item[1:]])[0], item.symbols)
    decoder.finish()


def test_a_missing_escape():
    item = mixture_pass((20, 16), 3, 2, 0.1)
    for lanes in (1, 8, 16, 32):
        payload = bytearray(encode([[item]], lanes=lanes, streams=1)[0])
        assert payload[1] == 1
        assert 1 < payload[2] < 128
        payload[2] -= 1
        for isa in ISAS:
            decoder = Decoder([payload[:-2]], isa=isa)
            out = torch.full((20, 16), -1, dtype=torch.int16)
            with pytest.raises(CorruptStreamError, match="tile 0: a stream ran out of escapes"):
                decoder.decode_mixtures([item[1:]], out=[out])
            same = (out == item.symbols).flatten().tolist()
            done = same.index(False) if False in same else len(same)
            step = done // lanes * lanes
            assert all(same[:step])
            assert not out.flatten()[step:].any()


def test_corrupt_payloads_agree_on_all_twins():
    rng = np.random.default_rng(11)
    tile = [gaussian_pass((9, 16), 1), mixture_pass((20, 16), 3, 2, 0.02), mixture_pass((20, 16), 3, 3)]
    seen = set()
    for lanes, streams in ((1, 1), (8, 2), (16, 1), (32, 2)):
        [payload] = encode([tile], lanes=lanes, streams=streams)
        for _ in range(60):
            damaged = bytearray(payload)
            kind = rng.integers(4)
            if kind == 0:
                del damaged[int(rng.integers(len(damaged))) & ~1 :]
            elif kind == 1:
                damaged += bytes(2)
            elif kind == 2:
                damaged[int(rng.integers(2, 8))] ^= int(rng.integers(1, 256))  # the directory, and the first states
            else:
                damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
            outcomes = []
            for isa in ISAS:
                try:
                    [decoded] = decode_all([bytes(damaged)], [tile], isa=isa)
                    outcomes.append([symbols.tolist() for symbols in decoded])
                except CorruptStreamError as error:
                    outcomes.append(str(error))
            assert all(outcome == outcomes[0] for outcome in outcomes)
            same = [item.symbols.tolist() for item in tile]
            assert isinstance(outcomes[0], str) or (bytes(damaged) == payload) == (outcomes[0] == same)
            seen.add(outcomes[0] if isinstance(outcomes[0], str) else "accepted")
    assert any("ran out of words" in text for text in seen)
    assert any("did not return" in text or "left over" in text for text in seen)
