"""The CompressAI adapter beside CompressAI itself: the same bytes, the same errors, and everything back afterwards.

Skipped where it is not installed (docs/dependencies.md; `make bench` installs it). Its bytes are proved without it too,
by test_rans64.py.
"""

from __future__ import annotations

import copy
import importlib.util
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastcodec.adapters import compressai as adapter
from fastcodec.errors import CorruptStreamError, SymbolRangeError, UnavailableError

if importlib.util.find_spec("compressai") is None:
    pytest.skip("CompressAI is not installed: `make bench` installs it", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
SCALES = np.exp(np.linspace(np.log(0.11), np.log(64), 24)).tolist()

# Every image architecture of CompressAI: its class and small channels.
MODELS = {
    "bmshj2018-factorized": ("FactorizedPrior", (8, 12)),
    "bmshj2018-factorized-relu": ("FactorizedPriorReLU", (8, 12)),
    "bmshj2018-hyperprior": ("ScaleHyperprior", (8, 12)),
    "mbt2018-mean": ("MeanScaleHyperprior", (8, 12)),
    "mbt2018": ("JointAutoregressiveHierarchicalPriors", (8, 12)),
    "cheng2020-anchor": ("Cheng2020Anchor", (8,)),
    "cheng2020-attn": ("Cheng2020Attention", (8,)),
    "cheng2020-anchor-checkerboard": ("Cheng2020AnchorCheckerboard", (8,)),
    "elic2022-official": ("Elic2022Official", (8, 24, [4, 4, 4, 4, 8])),
    "elic2022-chandelier": ("Elic2022Chandelier", (8, 24, [4, 4, 4, 4, 8])),
    "bmshj2018-hyperprior-vbr": ("ScaleHyperpriorVbr", (8, 12)),
    "mbt2018-mean-vbr": ("MeanScaleHyperpriorVbr", (8, 12)),
    "mbt2018-mean-vbr, vr_entbttlnck": ("MeanScaleHyperpriorVbr", (8, 12, True)),
    "mbt2018-vbr": ("JointAutoregressiveHierarchicalPriorsVbr", (8, 12)),
}


@pytest.fixture(autouse=True)
def _uninstalled(one_thread):
    yield
    adapter.uninstall()


def gaussian(compressai) -> nn.Module:
    model = compressai.entropy_models.GaussianConditional(None)
    model.update_scale_table(SCALES, force=True)
    return model


def latents(model: nn.Module, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, indexes and means, with some y far outside their tables."""
    rng = torch.Generator().manual_seed(sum(shape))
    indexes = torch.randint(0, len(SCALES), shape, dtype=torch.int32, generator=rng)
    means = torch.randn(shape, generator=rng) * 3
    y = torch.randn(shape, generator=rng) * model.scale_table[indexes.long()] * 2 + means
    y[torch.rand(shape, generator=rng) < 0.01] *= 50
    return y, indexes, means


def random_case(rng: random.Random) -> tuple[list[int], list[int], list[list[int]], list[int], list[int]]:
    cdfs, offsets = [], []
    for _ in range(rng.randrange(1, 6)):
        ends = sorted(rng.sample(range(1, 1 << 16), rng.choice((1, 3, 30, 200))))
        cdfs.append([0, *ends, 1 << 16])
        offsets.append(rng.randrange(-50, 50))
    # CompressAI writes outside its buffer when there are only a few symbols.
    indexes = [rng.randrange(len(cdfs)) for _ in range(rng.randrange(10, 60))]
    symbols = []
    for index in indexes:
        outside = rng.choice((1, 20, 5000, 1 << 24)) if rng.random() < 0.1 else 0
        symbols.append(rng.randrange(offsets[index] - outside, offsets[index] + len(cdfs[index]) - 1 + outside))
    lengths = [len(cdf) for cdf in cdfs]
    longest = max(lengths)
    return symbols, indexes, [cdf + [0] * (longest - len(cdf)) for cdf in cdfs], lengths, offsets


def test_a_thousand_random_cases(compressai):
    rng = random.Random(1)
    cases = [random_case(rng) for _ in range(1000)]
    theirs = [compressai.ans.RansEncoder().encode_with_indexes(*case) for case in cases]
    stock_decoder = compressai.ans.RansDecoder()
    with adapter.install():
        encoder, decoder = compressai.ans.RansEncoder(), compressai.ans.RansDecoder()
        for case, expected in zip(cases, theirs, strict=True):
            assert encoder.encode_with_indexes(*case) == expected
            assert decoder.decode_with_indexes(expected, *case[1:]) == case[0]
            assert stock_decoder.decode_with_indexes(expected, *case[1:]) == case[0]
    assert sum(any(not 0 <= s - c[4][i] < c[3][i] - 2 for s, i in zip(*c[:2], strict=True)) for c in cases) > 500


def test_buffered_encoder_and_stream_decoder(compressai):
    rng = random.Random(2)
    for _ in range(20):
        cases = [random_case(rng) for _ in range(3)]
        streams = []
        for context in (None, "compatible"):
            if context:
                adapter.install(context)
            encoder = compressai.ans.BufferedRansEncoder()
            for _ in range(2):  # flush begins anew
                for case in cases:
                    encoder.encode_with_indexes(*case)
                streams.append(encoder.flush())
            decoder = compressai.ans.RansDecoder()
            decoder.set_stream(streams[0])
            assert [decoder.decode_stream(*case[1:]) for case in cases] == [case[0] for case in cases]
            adapter.uninstall()
        assert len(set(streams)) == 1


def test_quantised_cdfs(compressai):
    rng = np.random.default_rng(1)
    sizes, bits = rng.integers(1, 300, 100).tolist(), rng.integers(9, 17, 100).tolist()
    cases = [([*(rng.random(n) ** rng.integers(1, 60)).tolist(), 0.1], b) for n, b in zip(sizes, bits, strict=True)]
    theirs = [compressai._CXX.pmf_to_quantized_cdf(*case) for case in cases]
    models = compressai.entropy_models.entropy_models
    with adapter.install():
        assert [compressai._CXX.pmf_to_quantized_cdf(*case) for case in cases] == theirs
        assert models.pmf_to_quantized_cdf(torch.tensor([0.5, 0.25, 0.25])).tolist() == [0, 32768, 49152, 65536]
        for wrong in ([-1.0], [float("nan")], [0.0], []):
            with pytest.raises(ValueError, match="Invalid `pmf`"):
                compressai._CXX.pmf_to_quantized_cdf(wrong, 16)


# ---------------------------------------------------------------------------------------------------------------------
# Whole models


def random_model(compressai, name: str) -> nn.Module:
    """A model whose latents are not all 0, as random weights have them."""
    torch.manual_seed(3)
    kind, arguments = MODELS[name]
    model = getattr(compressai.models, kind)(*arguments).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if part.endswith("quantiles"):
                parameter[:, 0, 1] += torch.rand(len(parameter)) * 3
            elif part.endswith("bias"):
                parameter.add_(torch.rand_like(parameter))
        last = [layer for layer in model.g_a if isinstance(layer, nn.Conv2d)][-1]
        last.weight.mul_(60)
    model.update(force=True)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_whole_models(compressai, name):
    model = random_model(compressai, name)
    torch.manual_seed(4)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        theirs = model.compress(x)
        expected = model.decompress(theirs["strings"], theirs["shape"])["x_hat"]
        assert min(len(string) for string in flat(theirs["strings"])) > 8
        with adapter.install():
            ours = model.compress(x)
            assert ours["strings"] == theirs["strings"]
            assert torch.equal(model.decompress(theirs["strings"], theirs["shape"])["x_hat"], expected)
        assert torch.equal(model.decompress(ours["strings"], ours["shape"])["x_hat"], expected)
        with adapter.install("native"):
            native = model.compress(x)
            assert all(isinstance(string, bytes) for string in flat(native["strings"]))
            assert torch.equal(model.decompress(native["strings"], native["shape"])["x_hat"], expected)
    assert native["strings"] != theirs["strings"]


def flat(strings) -> list[bytes]:
    return [strings] if isinstance(strings, bytes) else [string for part in strings for string in flat(part)]


def test_tables_made_under_the_adapter_are_theirs(compressai):
    theirs = random_model(compressai, "mbt2018-mean").state_dict()
    with adapter.install():
        ours = random_model(compressai, "mbt2018-mean").state_dict()
    assert all(torch.equal(tensor, ours[part]) for part, tensor in theirs.items())


def test_mixture_models(compressai):
    """They reach through `entropy_coder` for the coder itself, and have a CDF for each element."""
    torch.manual_seed(5)
    model = compressai.entropy_models.GaussianMixtureConditional(K=3)
    y = torch.randn(1, 4, 6, 5) * 4
    parameters = [torch.rand(1, 12, 6, 5) + 0.5, torch.randn(1, 12, 6, 5), torch.full((1, 12, 6, 5), 1 / 3)]
    theirs, quantised = model.compress(y, *map(torch.clone, parameters))
    with adapter.install():
        ours, _ = model.compress(y, *map(torch.clone, parameters))
        assert ours[0] == theirs[0]
        decoded = model.decompress(*ours, *map(torch.clone, parameters))
    assert torch.equal(decoded, quantised)


# ---------------------------------------------------------------------------------------------------------------------
# Entropy models


@pytest.mark.parametrize("mode", ["compatible", "native"])
@pytest.mark.parametrize("shape", [(1, 5), (3, 4, 7), (2, 6, 5, 3), (2, 3, 2, 2, 2), (1, 1, 1, 1), (0, 3, 4, 4)])
def test_shapes_dtypes_and_layouts(compressai, mode, shape):
    model = gaussian(compressai)
    y, indexes, means = latents(model, *shape)
    with adapter.install(mode):
        strings = model.compress(y, indexes, means)
        expected = torch.round(y - means) + means
        assert torch.equal(model.decompress(strings, indexes, means=means), expected)
        for change in (torch.Tensor.double, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)):
            assert model.compress(change(y.detach()), indexes, change(means)) == model.compress(
                change(y).contiguous(), indexes.long(), change(means).contiguous()
            )
        assert model.compress(y.clone().requires_grad_(), indexes, means) == strings
        whole = model.compress(torch.round(y), indexes)
        assert torch.equal(model.decompress(whole, indexes, torch.float64), torch.round(y).double())
        assert [model.compress(y[i : i + 1], indexes[i : i + 1], means[i : i + 1])[0] for i in range(len(y))] == strings
        with torch.inference_mode():
            assert model.compress(y, indexes, means) == strings


@pytest.mark.parametrize("mode", ["compatible", "native"])
def test_numbers_and_negative_views_as_tensors(compressai, mode):
    """Means may be a number; and what `z.conj().imag` gives lies in memory with the opposite sign."""
    model = gaussian(compressai)
    y, indexes, means = latents(model, 2, 3, 4, 4)
    prior = compressai.entropy_models.EntropyBottleneck(3)
    prior.update()
    with adapter.install(mode):
        assert model.compress(y, indexes, 0.25) == model.compress(y, indexes, torch.full_like(y, 0.25))
        assert model.compress(torch._neg_view(y), indexes, means) == model.compress(-y, indexes, means)
        assert model.compress(y, indexes, torch._neg_view(means)) == model.compress(y, indexes, -means)
        assert prior.compress(torch._neg_view(y)) == prior.compress(-y)


def test_another_default_device(compressai):
    model = gaussian(compressai)
    y, indexes, means = latents(model, 2, 3, 4, 4)
    theirs = model.compress(y, indexes, means)
    with adapter.install(), torch.device("meta"):
        assert model.compress(y, indexes, means) == theirs
        assert torch.equal(model.decompress(theirs, indexes, means=means), torch.round(y - means) + means)
        case = [1] * 20, [0] * 20, [[0, 100, 65536]], [3], [0]
        stream = compressai.ans.RansEncoder().encode_with_indexes(*case)
        assert compressai.ans.RansDecoder().decode_with_indexes(stream, *case[1:]) == case[0]


@pytest.mark.parametrize("mode", ["compatible", "native"])
def test_torch_compile(compressai, mode):
    prior, model = compressai.entropy_models.EntropyBottleneck(3), gaussian(compressai)
    prior.update()
    y, indexes, means = latents(model, 2, 3, 4, 4)

    def there_and_back(y, indexes, means):
        strings = prior.compress(y), model.compress(2 * y, indexes, means)
        return strings, prior.decompress(strings[0], (4, 4)), model.decompress(strings[1], indexes, means=means) + 1

    adapter.install(mode)
    compiled = torch.compile(there_and_back, backend="eager")(y, indexes, means)
    strings, *decoded = there_and_back(y, indexes, means)
    assert compiled[0] == strings
    assert all(map(torch.equal, compiled[1:], decoded))


@pytest.mark.parametrize("mode", [None, "compatible", "native"])
def test_errors_are_theirs(compressai, mode):
    """The same exceptions as CompressAI raises itself (None)."""
    if mode:
        adapter.install(mode)
    model = gaussian(compressai)
    y, indexes, means = latents(model, 1, 3, 4, 4)
    strings = model.compress(y, indexes, means)
    fresh = compressai.entropy_models.EntropyModel()
    calls = (
        lambda: fresh.compress(y, indexes),
        lambda: fresh.decompress(strings, indexes),
        lambda: model.compress(y[0, 0, 0], indexes[0, 0, 0]),
        lambda: model.compress(y, indexes[:, :2]),
        lambda: model.decompress("no list", indexes),
        lambda: model.decompress(strings * 2, indexes),
        lambda: model.decompress(strings, indexes[0, 0, 0, :1]),
        lambda: model.decompress(strings, indexes, means=means[:, :2]),
        lambda: model.decompress(strings, indexes, means=means[:, :, :2]),
    )
    for call in calls:
        with pytest.raises(ValueError):
            call()
    for call in (
        lambda: model.compress(y),
        lambda: model.compress(y, indexes, means, torch.tensor(1.0)),
        lambda: model.decompress([5], indexes),
        lambda: model.decompress(strings),
        lambda: compressai.ans.RansEncoder().encode_with_indexes([1.5], [0], [[0, 65536]], [2], [0]),
        lambda: compressai.ans.RansEncoder().encode_with_indexes([1], [0], [[0, 65536]], [2]),
        lambda: compressai.ans.RansDecoder().decode_with_indexes(3, [0], [[0, 65536]], [2], [0]),
    ):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("mode", ["compatible", "native"])
def test_what_would_crash_them_raises(compressai, mode):
    """Among them issue 300: a corrupt stream ends CompressAI's process, or decodes to what lies in its memory."""
    adapter.install(mode)
    model = gaussian(compressai)
    y, indexes, means = latents(model, 2, 8, 6, 6)
    strings = model.compress(y, indexes, means)
    for damaged in (b"", b"\0", strings[0][:-4], strings[0][:8], strings[0] + bytes(4), b"\xff" * len(strings[0])):
        with pytest.raises(CorruptStreamError):
            model.decompress([strings[0], damaged], indexes, means=means)
    for wrong in (-1, len(SCALES), 256, 1 << 20):
        with pytest.raises(ValueError, match="table"):
            model.compress(y, torch.full_like(indexes, wrong), means)
        with pytest.raises(ValueError, match="table"):
            model.decompress(strings, torch.full_like(indexes, wrong), means=means)
    for value in (float("nan"), float("inf"), 3e9):
        with pytest.raises(SymbolRangeError):
            model.compress(torch.full_like(y, value), indexes, means)
    model._quantized_cdf[3, 2] = 70000
    with pytest.raises(ValueError, match="CDF 3"):
        model.compress(y, indexes, means)


def test_what_would_crash_the_classes_raises(compressai):
    adapter.install()
    ans = compressai.ans
    cdf, sizes, offsets = [[0, 100, 65536]], [3], [0]
    for arguments in (
        ([0, 0], [0], cdf, sizes, offsets),
        ([0], [1], cdf, sizes, offsets),
        ([0], [-1], cdf, sizes, offsets),
        ([0], [0], cdf, [4], offsets),
        ([0], [0], cdf, [1], offsets),
        ([0], [0], cdf, [3, 3], offsets),
        ([0], [0], cdf, sizes, []),
        ([0], [0], [[0, 0, 65536]], sizes, offsets),
        ([1 << 30 | 1], [0], cdf, sizes, offsets),
        ([1 << 31], [0], cdf, sizes, offsets),
        ([0], [0], [], [], []),
    ):
        for encoder in (ans.RansEncoder(), ans.BufferedRansEncoder()):
            with pytest.raises(ValueError):
                encoder.encode_with_indexes(*arguments)
    buffered = ans.BufferedRansEncoder()
    assert (
        buffered.flush()
        == ans.RansEncoder().encode_with_indexes([], [], cdf, sizes, offsets)
        == (1 << 31).to_bytes(8, "little")
    )
    decoder = ans.RansDecoder()
    with pytest.raises(ValueError, match="set_stream"):
        decoder.decode_stream([0], cdf, sizes, offsets)
    stream = ans.RansEncoder().encode_with_indexes([0] * 90, [0] * 90, cdf, sizes, offsets)
    decoder.set_stream(stream[:-4])
    with pytest.raises(CorruptStreamError):
        decoder.decode_stream([0] * 90, cdf, sizes, offsets)
    for damaged in (b"", stream[:-4], stream + bytes(4)):
        with pytest.raises(CorruptStreamError):
            decoder.decode_with_indexes(damaged, [0] * 90, cdf, sizes, offsets)
    assert decoder.decode_with_indexes(bytearray(stream), [0] * 90, cdf, sizes, offsets) == [0] * 90


def test_lists_that_change_in_place_are_seen(compressai):
    """Tables are kept between calls: a list is the same object after its elements have changed."""
    cdf, sizes, offsets = [[0, 9000, 30000, 65536], [0, 1, 2, 65536]], [4, 4], [0, 0]
    symbols, indexes = [0, 1, 0, 1, 5, 0] * 4, [0, 1, 0, 0, 1, 0] * 4

    def streams():
        results = []
        encoder = compressai.ans.RansEncoder()
        for change in (lambda: None, lambda: cdf[0].__setitem__(1, 400), lambda: offsets.__setitem__(0, -1),
                       lambda: sizes.__setitem__(0, 3), lambda: cdf.reverse()):  # fmt: skip
            change()
            results.append(encoder.encode_with_indexes(symbols, indexes, cdf, sizes, offsets))
        return results

    cases = copy.deepcopy((cdf, sizes, offsets))
    with adapter.install():
        ours = streams()
    cdf[:], sizes[:], offsets[:] = cases
    assert ours == streams()
    assert len(set(ours)) == len(ours)


@pytest.mark.parametrize("mode", ["compatible", "native"])
def test_tables_follow_the_buffers(compressai, mode):
    adapter.install(mode)
    model = gaussian(compressai)
    y, indexes, means = latents(model, 1, 4, 6, 6)

    def fresh() -> list[bytes]:
        return copy.deepcopy(model).compress(y, indexes, means)

    def through_data() -> None:
        model._quantized_cdf.data[0, 2] -= 9000

    def through_numpy() -> None:
        model._quantized_cdf.numpy()[0, 2] -= 9000

    def in_inference_mode() -> None:
        with torch.inference_mode():
            model._offset.sub_(1)

    def by_a_state_dict() -> None:
        other = gaussian(compressai)
        other.update_scale_table([scale * 1.3 for scale in SCALES], force=True)
        for name in ("_quantized_cdf", "_offset", "_cdf_length"):
            setattr(model, name, torch.empty_like(getattr(other, name)))
        model.load_state_dict(other.state_dict())

    def by_an_update() -> None:
        model.update_scale_table([scale * 1.7 for scale in SCALES], force=True)

    before = model.compress(y, indexes, means)
    for change in (through_data, through_numpy, in_inference_mode, by_a_state_dict, by_an_update):
        change()
        after = model.compress(y, indexes, means)
        assert after != before, change
        assert after == fresh(), change
        before = after


def test_native_takes_more_tables_than_a_set_holds(compressai):
    """Each element by its own table, wherever the tables of a channel are: or the strings would be longer."""
    model = compressai.entropy_models.GaussianConditional(None)
    scales = np.exp(np.linspace(np.log(0.2), np.log(32), 300)).tolist()
    model.update_scale_table(scales, force=True)
    torch.manual_seed(1)
    channels = torch.arange(300)[:, None, None].expand(2, 300, 12, 10).int()
    for indexes in (channels, channels.flip(1), torch.randint(0, 300, channels.shape, dtype=torch.int32)):
        y = torch.randn(indexes.shape) * model.scale_table[indexes.long()]
        theirs = model.compress(y, indexes)
        with adapter.install("native"):
            strings = model.compress(y, indexes)
            assert torch.equal(model.decompress(strings, indexes), torch.round(y))
            with pytest.raises(CorruptStreamError):
                model.decompress(strings, 299 - indexes)
        assert all(len(ours) < 1.005 * len(string) for ours, string in zip(strings, theirs, strict=True))


def bottleneck(kind: type[nn.Module], channels: int) -> nn.Module:
    """A factorised prior whose channels differ, with medians that are no integers."""
    torch.manual_seed(5)
    model = kind(channels)
    with torch.no_grad():
        model.quantiles += torch.randn(channels, 1, 1)
    model.update(force=True)
    return model


@pytest.mark.parametrize("channels, shape", [(6, (4, 5)), (6, ()), (6, (7,)), (300, (3, 2)), (6, (0, 3))])
def test_factorised_priors_by_channels(compressai, monkeypatch, channels, shape):
    """The same strings and values as by indexes."""
    model = bottleneck(compressai.entropy_models.EntropyBottleneck, channels)
    x = torch.randn(2, channels, *shape) * 4
    wide = torch.stack([x, x], -1)[..., 0]  # not contiguous
    with adapter.install("native"):
        strings = model.compress(x)
        values = model.decompress(strings, shape)
        assert model.compress(wide) == model.compress(x.double()) == strings
        assert model.decompress(tuple(strings), shape).equal(values)
        assert model.compress(x[:0]) == []
        assert model.decompress([], shape).shape == (0, channels, *shape)
        # Strings' errors, and those of symbols, are the general way's.
        with pytest.raises(CorruptStreamError):
            model.decompress([strings[0], strings[1] + b"12"], shape)
        with pytest.raises(TypeError, match="a string of a compressed tensor is bytes, not str"):
            model.decompress(["0", "1"], shape)
        if x.numel():
            x.view(-1)[3] = 1e9
            with pytest.raises(SymbolRangeError):
                model.compress(x)
            x.view(-1)[3] = wide.reshape(-1)[3]
        monkeypatch.setattr(sys.modules[adapter.__name__], "_factorised", lambda model: None)
        assert model.compress(x) == strings
        assert torch.equal(model.decompress(strings, shape), values)
    assert values.dtype == torch.float32
    assert values.is_contiguous()
    if x.numel():  # else CompressAI's coder crashes
        assert torch.equal(values, model.decompress(model.compress(x), shape))


def test_what_a_factorised_prior_has_of_its_own_is_obeyed(compressai):
    stock = compressai.entropy_models.EntropyBottleneck

    class Medians(stock):
        def _get_medians(self):
            return torch.zeros_like(super()._get_medians())

    class Indexes(stock):
        @staticmethod
        def _build_indexes(size):
            return stock._build_indexes(size).flip(1)

    class Floor(stock):
        def quantize(self, inputs, mode, means=None):
            return torch.floor(inputs - means).int()

    class Twice(stock):
        @staticmethod
        def dequantize(inputs, means=None, dtype=torch.float):
            assert inputs.dtype == torch.int32
            return inputs * 2.0

    class Counting(compressai.entropy_models.EntropyModel):
        calls = 0

        def compress(self, *arguments):
            Counting.calls += 1
            return super().compress(*arguments)

    class Between(stock, Counting):
        pass

    for kind in (Medians, Indexes, Floor, Twice, Between):
        model = bottleneck(kind, 5)
        x = torch.randn(1, 5, 6, 6) * 4
        theirs = model.decompress(model.compress(x), (6, 6))
        with adapter.install("native"):
            strings = model.compress(x)
            assert torch.equal(model.decompress(strings, (6, 6)), theirs), kind
        assert len(model.compress(x)[0]) - 8 < len(strings[0]) < len(model.compress(x)[0]) + 40
    assert Counting.calls == 4
    model = bottleneck(stock, 5)
    model.quantize = lambda inputs, mode, means=None: torch.floor(inputs).int()
    with adapter.install("native"):
        assert torch.equal(model.decompress(model.compress(x), (6, 6)), torch.floor(x) + model._get_medians().detach())


def test_precisions_below_16_bits(compressai):
    model = compressai.entropy_models.EntropyBottleneck(6, entropy_coder_precision=12)
    model.update(force=True)
    x = torch.randn(2, 6, 4, 4) * 5
    theirs = model.compress(x)
    for mode in ("compatible", "native"):
        with adapter.install(mode):
            strings = model.compress(x)
            if mode == "compatible":
                assert strings == theirs
            else:  # CompressAI loses four bits a symbol
                assert len(strings[0]) < len(theirs[0]) - 96 * 4 / 8 + 8
            assert torch.equal(model.decompress(strings, (4, 4)), torch.round(x))


def test_a_model_s_own_quantize_is_obeyed(compressai):
    class Floor(compressai.entropy_models.GaussianConditional):
        def quantize(self, inputs, mode, means=None):
            return torch.floor(inputs - means).int()

    model = Floor(None)
    model.update_scale_table(SCALES, force=True)
    y, indexes, means = latents(model, 1, 3, 4, 4)
    theirs = model.compress(y, indexes, means)
    with adapter.install():
        assert model.compress(y, indexes, means) == theirs
    with adapter.install("native"):
        strings = model.compress(y, indexes, means)
        assert torch.equal(model.decompress(strings, indexes, means=means), torch.floor(y - means) + means)


# ---------------------------------------------------------------------------------------------------------------------
# Installing


def snapshot() -> dict:
    """Every attribute of CompressAI's modules, and of the classes that are patched."""
    models = sys.modules["compressai.entropy_models.entropy_models"]
    vbr = sys.modules["compressai.entropy_models.entropy_models_vbr"]
    holders = [module for name, module in sys.modules.items() if name.startswith("compressai")]
    holders += [models.EntropyModel, models.EntropyBottleneck, models._EntropyCoder, vbr.EntropyModelVbr]
    return {(str(holder), name): id(value) for holder in holders for name, value in list(vars(holder).items())}


def test_install_and_uninstall(compressai):
    before = snapshot()
    existing = gaussian(compressai)
    stock = type(existing.entropy_coder._encoder)
    installation = adapter.install()
    assert adapter.active() == "compatible"
    replaced = {
        (module, name)
        for module in (
            "compressai.ans",
            "compressai.models.google",
            "compressai.models.vbr",
            "compressai.latent_codecs.rasterscan",
        )
        for name in ("RansDecoder", "BufferedRansEncoder")
        if getattr(sys.modules[module], name).__module__.startswith("fastcodec")
    }
    assert len(replaced) == 8
    made = gaussian(compressai)
    compressai.set_entropy_coder("ans")
    for model in (existing, made, pickle.loads(pickle.dumps(made)), copy.deepcopy(existing)):
        assert type(model.entropy_coder._encoder).__module__.startswith("fastcodec")
        assert type(model.entropy_coder._decoder).__module__.startswith("fastcodec")
        assert model.entropy_coder._decoder is model.entropy_coder._decoder
    installation.uninstall()
    assert adapter.active() is None
    assert snapshot() == before
    for model in (existing, made):
        assert type(model.entropy_coder._encoder) is stock
        assert model.__dict__.keys() == existing.__dict__.keys()
    installation.uninstall()  # does nothing
    adapter.uninstall()


def test_an_old_compressai_is_left_alone(compressai, monkeypatch):
    before = snapshot()
    monkeypatch.setitem(sys.modules, "compressai.entropy_models.entropy_models_vbr", None)
    with pytest.raises(UnavailableError, match="too old: it has no compressai"):
        adapter.install()
    monkeypatch.undo()
    assert snapshot() == before
    assert adapter.active() is None


def test_installations_nest(compressai):
    before = snapshot()
    with adapter.install("native"):
        with adapter.install() as inner:
            assert inner.mode == adapter.active() == "compatible"
        assert adapter.active() == "native"
        outer = adapter.install("compatible")
        last = adapter.install("native")
        outer.uninstall()  # not the last one
        assert adapter.active() == "native"
        last.uninstall()
        assert adapter.active() == "native"
    assert adapter.active() is None
    assert snapshot() == before
    adapter.install()
    adapter.install("native")
    adapter.uninstall()
    assert adapter.active() is None
    assert snapshot() == before
    with pytest.raises(RuntimeError), adapter.install():
        raise RuntimeError
    assert snapshot() == before
    with pytest.raises(ValueError, match="mode"):
        adapter.install("fast")
    assert snapshot() == before


def test_what_others_patch_meanwhile_stays(compressai):
    model = gaussian(compressai)
    y, indexes, means = latents(model, 1, 3, 4, 4)
    theirs, calls = model.compress(y, indexes, means), []
    owner = compressai.entropy_models.EntropyModel
    stock = owner.compress
    adapter.install("native")
    ours = owner.compress

    def counting(self, *arguments):
        calls.append(1)
        return ours(self, *arguments)

    owner.compress = counting
    try:
        assert model.compress(y, indexes, means) != theirs
        adapter.uninstall()
        assert owner.compress is counting
        assert model.compress(y, indexes, means) == theirs  # by CompressAI, through ours
        with adapter.install("native"):
            assert model.compress(y, indexes, means) != theirs
            assert len(calls) == 2
        assert owner.compress is counting
        assert model.compress(y, indexes, means) == theirs
        assert len(calls) == 3
    finally:
        owner.compress = stock


def test_what_was_patched_before_comes_back(compressai, monkeypatch):
    owner = compressai.entropy_models.EntropyModel
    monkeypatch.setattr(owner, "compress", lambda *arguments: "patched")
    model = gaussian(compressai)
    y, indexes, means = latents(model, 1, 3, 4, 4)
    with adapter.install():
        assert model.compress(y, indexes, means) != "patched"
    assert model.compress(y, indexes, means) == "patched"


def test_modules_imported_meanwhile(compressai, tmp_path, monkeypatch):
    (tmp_path / "imported_meanwhile.py").write_text("from compressai.ans import RansEncoder as Encoder\n")
    monkeypatch.syspath_prepend(tmp_path)
    stock = compressai.ans.RansEncoder
    with adapter.install():
        import imported_meanwhile

        assert imported_meanwhile.Encoder is not stock
    assert imported_meanwhile.Encoder is stock
    del sys.modules["imported_meanwhile"]


def test_coders_of_another_kind_are_left_alone(compressai):
    model = gaussian(compressai)

    class Other:
        name = "rangecoder"

        def encode_with_indexes(self, *arguments):
            return b"other"

    model.entropy_coder = Other()
    y, indexes, means = latents(model, 2, 3, 4, 4)
    with adapter.install():
        assert model.compress(y, indexes, means) == [b"other"] * 2


def test_threads(compressai):
    """Models in several threads, one adapter: nothing is mixed up."""
    model = gaussian(compressai)
    cases = [latents(model, 1, 8, 6, width) for width in range(2, 10)]
    theirs = [model.compress(*case) for case in cases]
    failures = []

    def work(number: int) -> None:
        for _ in range(10):
            for case, expected in zip(cases[number:], theirs[number:], strict=True):
                if model.compress(*case) != expected:
                    failures.append(number)

    with adapter.install():
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_without_compressai():
    """fastcodec does not need it: the adapter imports it when it is installed, and says what is missing."""
    code = (
        "import sys, importlib.util\n"
        "import fastcodec.adapters.compressai as adapter\n"
        "assert not any(name.startswith('compressai') for name in sys.modules)\n"
        "importlib.util.find_spec = lambda name: None\n"
        "try:\n    adapter.install()\n"
        "except adapter.UnavailableError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "CompressAI is not installed" in run.stdout
