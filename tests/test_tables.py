"""Table sets: the shipped Gaussian tables against their formula, the quantisation of distributions, storage."""

import heapq
import math

import numpy as np
import pytest
import torch

from fastcodec import rans
from fastcodec.entropy import gaussian
from fastcodec.entropy.gaussian import SCALES, gaussian_tables
from fastcodec.kernels.rans.tables import PROBABILITY_TOTAL, TableSet, quantise_pmf


def gaussian_pmf(sigma: float, reach: int) -> np.ndarray:
    """Masses of -reach .. reach and of all other values."""
    edges = np.array([math.erfc((k - 0.5) / (sigma * math.sqrt(2))) / 2 for k in range(reach + 2)])
    half = edges[:-1] - edges[1:]
    return np.concatenate([half[:0:-1], half, [2 * edges[-1]]])


def code_length(pmf: np.ndarray, frequencies: np.ndarray) -> float:
    return float(-(pmf * np.log2(frequencies / PROBABILITY_TOTAL)).sum())


def test_shipped_tables_follow_from_the_formula():
    pytest.importorskip("mpmath")
    rebuilt = gaussian.build_tables()
    assert rebuilt == gaussian_tables()
    assert rebuilt.identity == gaussian.SHA256


def test_scales():
    assert len(SCALES) == 64
    assert SCALES[0] == 0.11
    assert SCALES[63] == 64
    assert 0.12 < SCALES[1] < 0.13
    np.testing.assert_allclose(np.diff(np.log(SCALES)), math.log(64 / 0.11) / 63)


def test_shape_of_the_shipped_tables():
    tables = gaussian_tables()
    assert tables.count == 64
    assert tables.skip
    assert tables.frequencies(0).tolist() == [PROBABILITY_TOTAL]
    for i in range(1, 64):
        frequencies = tables.frequencies(i)
        reach = max(1, math.ceil(gaussian.SUPPORT * SCALES[i]))
        assert tables.first_symbol(i) == -reach
        assert len(frequencies) == 2 * reach + 2
        assert int(frequencies.sum(dtype=int)) == PROBABILITY_TOTAL
        assert frequencies.min() >= 1
        coded = frequencies[:-1]
        assert (coded == coded[::-1]).all(), "symmetric"
        assert (np.diff(coded[: reach + 1].astype(int)) >= -1).all(), "rises to the centre, up to a tie"


@pytest.mark.parametrize("i", [1, 5, 17, 31, 44, 57, 63])
def test_tables_take_the_largest_gain_per_slot(i):
    """The largest gain per slot, one step at a time from 1 everywhere: without the builder's shortcut."""
    frequencies = gaussian_tables().frequencies(i)
    reach = (len(frequencies) - 2) // 2
    pmf = gaussian_pmf(SCALES[i], reach)
    mass = [pmf[reach], *pmf[reach + 1 : -1], pmf[-1]]
    slots = [1] + [2] * reach + [1]
    greedy = [1] * len(mass)
    left = PROBABILITY_TOTAL - sum(slots)
    heap = [(-p * math.log(2), k) for k, p in enumerate(mass)]
    heapq.heapify(heap)
    while left > 0:
        k = heapq.heappop(heap)[1]
        if slots[k] <= left:
            greedy[k] += 1
            left -= slots[k]
            heapq.heappush(heap, (-mass[k] * math.log1p(1 / greedy[k]), k))
    centre, *sides, sentinel = greedy
    best = np.array([*reversed(sides), centre, *sides, sentinel])
    # Ties may fall otherwise in double precision; the code length may not.
    assert code_length(pmf, frequencies) == pytest.approx(code_length(pmf, best), rel=1e-12)
    assert np.abs(best - frequencies.astype(int)).max() <= 1


def test_loss_of_the_tables():
    """Against the entropy of the distribution over symbols and sentinel: every entry takes at least 2^-14."""
    for i in range(1, 64):
        frequencies = gaussian_tables().frequencies(i)
        pmf = gaussian_pmf(SCALES[i], (len(frequencies) - 2) // 2)
        entropy = float(-(pmf[pmf > 0] * np.log2(pmf[pmf > 0])).sum())
        loss = code_length(pmf, frequencies) - entropy
        assert 0 <= loss < 2.5e-4 + (3e-4 if i < 30 else 3.5e-3) * entropy, i


def test_a_damaged_file_is_noticed(monkeypatch):
    monkeypatch.setattr(gaussian, "SHA256", "0" * 64)
    gaussian._packaged_tables.cache_clear()
    with pytest.raises(RuntimeError, match=r"gaussian64\.bin is damaged"):
        gaussian_tables()
    monkeypatch.undo()
    gaussian._packaged_tables.cache_clear()
    assert gaussian_tables().count == 64


def slowest_greedy(pmf: np.ndarray) -> np.ndarray:
    frequencies = np.ones(len(pmf), dtype=np.int64)
    for _ in range(PROBABILITY_TOTAL - len(pmf)):
        frequencies[np.argmax(pmf * np.log1p(1 / frequencies))] += 1
    return frequencies


@pytest.mark.parametrize("kind", ["uniform", "random", "peaked", "zeros", "one", "tiny", "large"])
def test_quantised_pmf_is_optimal(kind):
    rng = np.random.default_rng(1)
    pmf = {
        "uniform": np.ones(37),
        "random": rng.random(50) ** 4,
        "peaked": np.array([1e-12, 1.0, 1e-9, 1e-7]),
        "zeros": np.array([0, 0.3, 0, 0.7, 0]),
        "one": np.array([3.0]),
        "tiny": np.array([1e-300, 1e-290]),
        "large": rng.random(3000) ** 8,
    }[kind]
    frequencies = quantise_pmf(pmf)
    assert frequencies.dtype == np.uint16
    assert frequencies.min() >= 1
    assert int(frequencies.sum(dtype=int)) == PROBABILITY_TOTAL
    pmf = pmf / pmf.sum()
    assert code_length(pmf, frequencies) == pytest.approx(code_length(pmf, slowest_greedy(pmf)), abs=1e-12)


def test_quantised_pmf_of_all_slots():
    assert (quantise_pmf(np.random.default_rng(0).random(PROBABILITY_TOTAL)) == 1).all()


@pytest.mark.parametrize("bad", [[], [[1.0]], [-1.0, 2.0], [math.nan, 1.0], [math.inf], [0.0, 0.0], [1.0] * 16385])
def test_not_a_distribution(bad):
    with pytest.raises(ValueError):
        quantise_pmf(np.array(bad))


def test_from_pmfs():
    tables = TableSet.from_pmfs([(-1, np.array([0.25, 0.5, 0.24]), 0.01), (5, np.array([]), 1.0)])
    assert tables.count == 2
    assert not tables.skip
    assert tables.first_symbol(0) == -1
    assert len(tables.frequencies(0)) == 4
    assert tables.frequencies(1).tolist() == [PROBABILITY_TOTAL]
    assert TableSet.from_pmfs([(9, np.ones(9), 0.0), (0, np.ones(2), 0.1)], skip=True).frequencies(0).size == 1


def test_storage():
    tables = gaussian_tables()
    data = tables.to_bytes()
    copy = TableSet.from_bytes(data)
    assert copy == tables
    assert hash(copy) == hash(tables)
    assert copy.identity == tables.identity
    other = TableSet([(0, [1, 16383]), (-3, [16384])])
    assert other != tables
    assert TableSet.from_bytes(memoryview(other.to_bytes())) == other
    with pytest.raises(ValueError):
        tables.frequencies(1)[0] = 7
    for bad in (
        b"",
        data[:-1],
        data[:-2],
        data + b"\0\0",
        data[:100],
        b"\0\0" + data[2:],
        data[:2] + b"\2\0" + data[4:],
    ):
        with pytest.raises(ValueError):
            TableSet.from_bytes(bad)


@pytest.mark.parametrize(
    "tables, skip",
    [
        ([], False),
        ([(0, [1])] * 2, False),
        ([(0, [0, 16384])], False),
        ([(0, [1.0, 16383.0])], False),
        ([(0, [-1, 16385])], False),
        ([(0, [16384])] * 257, False),
        ([(32767, [1, 1, 16382])], False),
        ([(-32769, [1, 16383])], False),
        ([(0, [1, 16383])], True),
        ([(1, [16384])], True),
    ],
)
def test_not_tables(tables, skip):
    with pytest.raises(ValueError):
        TableSet(tables, skip=skip)


def test_tables_at_the_ends_of_int16():
    assert TableSet([(32767, [1, 16383]), (-32768, [1, 16383])]).count == 2


def test_scale_indexes() -> None:
    """The nearest in log-scale, for all kinds of sigmas."""
    sigmas = torch.from_numpy(np.geomspace(0.05, 100, 6000)).reshape(3, 1000, 2)
    distance = (sigmas.log()[..., None] - torch.from_numpy(np.log(rans.GAUSSIAN_SCALES))).abs()
    indexes = rans.scale_indexes(sigmas)
    assert (indexes.dtype, indexes.shape) == (torch.uint8, sigmas.shape)
    assert indexes.is_contiguous()
    nearest = distance.min(-1).values
    chosen = distance.gather(-1, indexes.long()[..., None])[..., 0]
    assert torch.all(chosen <= nearest + 1e-6)
    odd = torch.tensor([-1.0, 0.0, 0.1157, 0.1158, torch.inf, torch.nan])
    assert rans.scale_indexes(odd).tolist() == [0, 0, 0, 1, 63, 63]
    assert rans.scale_indexes(sigmas.half().transpose(0, 1)).is_contiguous()
    own = [0.5, 2.0, 8.0]
    assert rans.scale_indexes(torch.tensor([0.1, 0.99, 1.01, 3.99, 4.01]), own).tolist() == [0, 0, 1, 1, 2]
    assert rans.scale_indexes(torch.tensor([7.0]), [1.0]).tolist() == [0]
    for wrong in ([], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0], np.ones((2, 2)), np.arange(1, 258)):
        with pytest.raises(ValueError, match="1 to 256 numbers"):
            rans.scale_indexes(sigmas, wrong)


def test_thresholds_of_scale_indexes_are_the_same_everywhere() -> None:
    """A NumPy whose powers differ in their last bits has the same float32 thresholds."""
    edges = np.sqrt(rans.GAUSSIAN_SCALES[:-1] * rans.GAUSSIAN_SCALES[1:])
    assert np.array_equal(np.float32(edges * (1 - 1e-12)), np.float32(edges * (1 + 1e-12)))
