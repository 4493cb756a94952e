"""The Gaussian kernels: code lengths and their gradients beside PyTorch, tables beside the stored ones and the rule."""

import heapq
import math

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fastcodec import rans
from fastcodec.entropy import gaussian
from fastcodec.entropy.gaussian import COUNT, GREATEST_SCALE, LEAST_SCALE, SCALES, SUPPORT, gaussian_tables
from fastcodec.kernels.rans import gaussians
from fastcodec.kernels.rans.gaussians import gaussian_frequencies_reference, tie_margins
from fastcodec.kernels.rans.tables import PROBABILITY_TOTAL, TableSet
from fastcodec.kernels.triton import gaussian_likelihood
from fastcodec.kernels.triton.gaussian_cdf import gaussian_frequencies
from fastcodec.kernels.triton.gaussian_likelihood import gaussian_bits, gaussian_bits_reference
from fastcodec.models.swift import network as swift

LOG_STEP = math.log(GREATEST_SCALE / LEAST_SCALE) / (COUNT - 1)
OPERATORS = torch.ops.fastcodec


# ---- code lengths


def bits_and_gradients(function, residual: Tensor, index: Tensor, device: str = "cpu") -> list[Tensor]:
    """Code length and its gradients by residual and index, as float64 on the CPU."""
    inputs = [t.to(device).detach().requires_grad_() for t in (residual, index)]
    bits = function(*inputs, LEAST_SCALE, LOG_STEP)
    assert bits.dtype == residual.dtype
    assert bits.shape == residual.shape
    return [t.detach().cpu().double() for t in (bits, *torch.autograd.grad(bits.sum(), inputs))]


def grid() -> tuple[Tensor, Tensor]:
    """Residuals to 600 of both signs, close together where the scales are small; indexes 0 to 63, fractional too."""
    residual = torch.cat([torch.linspace(0, 5, 101), torch.linspace(5, 60, 56), torch.linspace(60, 600, 46)])
    index = torch.linspace(0, 63, 85)
    return tuple(torch.meshgrid(torch.cat([residual, -residual]), index, indexing="ij"))


# Bits to 2e-4: at the greatest scale p is 0.006, a difference of numbers near 1 with errors of 3e-7. A gradient is
# steep where the index's rounding is multiplied by a far tail's exponent.
BITS_TOLERANCE = {"rtol": 0, "atol": 2e-4}
GRADIENT_TOLERANCE = {"rtol": 1e-4, "atol": 5e-5}


def test_bits_and_gradients(device):
    residual, index = grid()
    found = bits_and_gradients(gaussian_bits, residual, index, device)
    reference = bits_and_gradients(gaussian_bits_reference, residual, index)
    exact = bits_and_gradients(gaussian_bits_reference, residual.double(), index.double())
    assert exact[0].max() == pytest.approx(-math.log2(1e-9))
    for expected in (reference, exact):
        torch.testing.assert_close(found[0], expected[0], **BITS_TOLERANCE)
        torch.testing.assert_close(found[1], expected[1], **GRADIENT_TOLERANCE)
        torch.testing.assert_close(found[2], expected[2], **GRADIENT_TOLERANCE)


def test_float64(device):
    residual, index = (t[::5, ::4].double() for t in grid())
    found = bits_and_gradients(gaussian_bits, residual, index, device)
    expected = bits_and_gradients(gaussian_bits_reference, residual, index)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_bits_against_the_formula_in_high_precision(device):
    mpmath = pytest.importorskip("mpmath")
    residual = torch.tensor([0.0, 0.25, 0.5, -0.7, 1.0, 3.0, 20.0, -150.0, 350.0], dtype=torch.float64)
    index = torch.tensor([62.5, 0.0, 31.0, 3.25, 0.5, 20.0, 45.0, 60.0, 63.0], dtype=torch.float64)
    found = gaussian_bits(residual.to(device), index.to(device), LEAST_SCALE, LOG_STEP).tolist()
    for bits, r, i in zip(found, residual.tolist(), index.tolist(), strict=True):
        sigma = LEAST_SCALE * mpmath.exp(mpmath.mpf(i) * LOG_STEP)
        with mpmath.workprec(120):
            p = mpmath.ncdf((abs(r) + 0.5) / sigma) - mpmath.ncdf((abs(r) - 0.5) / sigma)
            assert bits == pytest.approx(float(-mpmath.log(p, 2)), rel=1e-12), (r, i)


def test_the_bound_passes_gradients_on(device):
    """Far out p is lost against the bound, but what moves it is not: a residual of 6 at scale 0.9."""
    residual, index = torch.tensor([5.5, -5.5, 600.0]), torch.full((3,), 20.0)
    bits, by_residual, by_index = bits_and_gradients(gaussian_bits, residual, index, device)
    torch.testing.assert_close(bits, torch.full_like(bits, -math.log2(1e-9)), rtol=1e-6, atol=0)
    assert by_residual[0] > 1e-2
    assert by_residual[1] == -by_residual[0]
    assert by_index[0] < -1e-2
    assert by_residual[2] == by_index[2] == 0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1023,), (1025,), (2, 3, 5, 7)])
def test_shapes(device, shape):
    generator = torch.Generator().manual_seed(1)
    residual = 4 * torch.randn(shape, generator=generator)
    index = 63 * torch.rand(shape, generator=generator)
    found = bits_and_gradients(gaussian_bits, residual, index, device)
    expected = bits_and_gradients(gaussian_bits_reference, residual, index)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-4)


def test_tensors_that_are_not_contiguous(device):
    generator = torch.Generator().manual_seed(2)
    residual = (4 * torch.randn(6, 10, generator=generator)).to(device).T
    index = (63 * torch.rand(10, 12, generator=generator)).to(device)[:, ::2]
    weight = torch.rand(10, 1, generator=generator).to(device)
    results = []
    for function, copy in ((gaussian_bits, lambda t: t), (gaussian_bits_reference, Tensor.contiguous)):
        inputs = [copy(t).detach().requires_grad_() for t in (residual, index)]
        bits = function(*inputs, LEAST_SCALE, LOG_STEP)
        results.append([bits, *torch.autograd.grad(bits, inputs, weight.expand(10, 6))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-4)


def test_gradients_are_those_of_the_bits(device):
    residual = torch.tensor([0.0, 0.3, -0.5, 1.0, -2.7, 4.0], dtype=torch.float64, device=device)
    index = torch.tensor([20.0, 25.5, 40.0, 63.0], dtype=torch.float64, device=device)
    inputs = [t.contiguous().requires_grad_() for t in torch.meshgrid(residual, index, indexing="ij")]
    assert gaussian_bits(*inputs, LEAST_SCALE, LOG_STEP).max() < 25  # the bound is at 29.9
    assert torch.autograd.gradcheck(lambda r, i: gaussian_bits(r, i, LEAST_SCALE, LOG_STEP), inputs)


def test_gradients_of_the_reference_are_those_of_autograd():
    residual, index = (t[::3, ::3].double() for t in grid())
    gradient = torch.linspace(-1, 2, residual.numel(), dtype=torch.float64).view_as(residual)
    inputs = [residual.clone().requires_grad_(), index.clone().requires_grad_()]
    bits = gaussian_bits_reference(*inputs, LEAST_SCALE, LOG_STEP)
    expected = torch.autograd.grad(bits, inputs, gradient)
    found = gaussian_likelihood.gaussian_bits_backward_reference(gradient, residual, index, LEAST_SCALE, LOG_STEP)
    torch.testing.assert_close(found, expected)


def test_nan_stays_nan(device):
    residual = torch.tensor([math.nan, 1.0, 1.0])
    index = torch.tensor([3.0, math.nan, 3.0])
    for result in bits_and_gradients(gaussian_bits, residual, index, device):
        assert result.isnan().tolist() == [True, True, False]


def test_inputs_that_do_not_fit_are_refused():
    x = torch.zeros(3)
    for residual, index, what in ((x, x[:2], "shape"), (x, x.double(), "dtype"), (x.half(), x.half(), "float16")):
        with pytest.raises(ValueError, match=what):
            gaussian_bits(residual, index, LEAST_SCALE, LOG_STEP)


def test_likelihood_operators(device):
    residual, index = (t[60:63, 20:25].to(device).requires_grad_() for t in grid())
    torch.library.opcheck(OPERATORS.gaussian_bits.default, (residual, index, LEAST_SCALE, LOG_STEP))
    gradient, residual, index = torch.ones(3, 5, device=device), residual.detach(), index.detach()
    arguments = (gradient, residual, index, LEAST_SCALE, LOG_STEP)
    torch.library.opcheck(
        OPERATORS.gaussian_bits_backward.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize(
    "coefficients, dtype", [(gaussian_likelihood.SINGLE, np.float32), (gaussian_likelihood.DOUBLE, np.float64)]
)
def test_coefficients_follow_from_the_formula(coefficients, dtype):
    """(x + 2) erfcx(x) in t = (x - 2) / (x + 2), interpolated in as many Chebyshev nodes as there are coefficients."""
    mpmath = pytest.importorskip("mpmath")
    count = len(coefficients)
    with mpmath.workprec(400):
        nodes = [mpmath.cos(mpmath.pi * (2 * j + 1) / (2 * count)) for j in range(count)]
        rows, values = mpmath.matrix(count, count), mpmath.matrix(count, 1)
        for j, t in enumerate(nodes):
            x = 2 * (1 + t) / (1 - t)
            values[j] = (x + 2) * mpmath.exp(x * x) * mpmath.erfc(x)
            for power in range(count):
                rows[j, power] = t ** (count - 1 - power)
        exact = [float(value) for value in mpmath.lu_solve(rows, values)]
    np.testing.assert_array_equal(np.array(coefficients, dtype), np.array(exact, dtype))


# ---- in the trainer


def test_the_trainer_takes_the_kernel_on_gpus_that_have_triton(monkeypatch):
    choose = swift._gaussian_operator.__wrapped__
    assert choose("cuda") is gaussian_bits
    assert choose("cpu") is None
    monkeypatch.setattr(swift, "find_spec", lambda name: None)
    assert choose("cuda") is None


def test_references_agree():
    residual, index = grid()
    ours = swift.gaussian_bits(residual, index)
    assert torch.equal(ours, gaussian_bits_reference(residual, index, LEAST_SCALE, LOG_STEP))


def test_a_training_step(device, monkeypatch):
    config = swift.SwiftConfig(
        features=8, latents=16, hyper_latents=4, hyper_features=8, context_features=8, hidden=8, blocks=1
    )
    torch.manual_seed(3)
    model = swift.Swift(config).to(device)
    x, t = torch.rand(2, 3, 64, 64).to(device), torch.tensor([0.2, 0.9], device=device)
    losses, gradients, calls = [], [], []

    def counted(*arguments):
        calls.append(arguments)
        return gaussian_bits(*arguments)

    for operator in (None, counted):
        monkeypatch.setattr(swift, "_gaussian_operator", lambda device, operator=operator: operator)
        torch.manual_seed(4)
        model.zero_grad()
        out = model(x, t)
        loss = (out["y_bits"] + out["z_bits"]).mean() / 64**2 + 100 * (out["x_hat"] - x).square().mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert len(calls) == 2  # anchors and non-anchors
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert gradients[0]["groups.0.indexes.weight"].abs().max() > 0
    for name, expected in gradients[0].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-4 * scale, msg=name)


# ---- tables


def tables_of(firsts: Tensor, sizes: Tensor, frequencies: Tensor) -> list[tuple[int, list[int]]]:
    """What the operator gives, as `TableSet` takes it; entries beyond a table must be 0."""
    tables = []
    for first, size, row in zip(firsts.tolist(), sizes.tolist(), frequencies.tolist(), strict=True):
        assert not any(row[size:])
        tables.append((first, row[:size]))
    return tables


def greedy(scale: float, support: float, total: int) -> tuple[list[int], float]:
    """A table and its tie margin by the rule as it is written, one slot after the other, in 120-bit arithmetic."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workprec(120):
        reach = max(1, math.ceil(support * scale))
        width = mpmath.mpf(scale) * mpmath.sqrt(2)
        above = [mpmath.erfc((k - mpmath.mpf(0.5)) / width) / 2 for k in range(reach + 2)]
        mass = [above[k] - above[k + 1] for k in range(reach + 1)] + [2 * above[-1]]
        slots = [1] + [2] * reach + [1]
        frequencies = [1] * len(mass)

        def offer(i: int):
            return -mass[i] * mpmath.log1p(mpmath.mpf(1) / frequencies[i]), i

        left = total - sum(slots)
        heap = [offer(i) for i in range(len(mass))]
        heapq.heapify(heap)
        last, refused, singles = math.inf, None, []
        while left > 0:
            gain, i = heapq.heappop(heap)
            if slots[i] > left:
                refused = refused or -gain
                continue
            if refused:
                other = (len(mass) - 1) - i
                singles = [-gain / -offer(other)[0] - 1]
            else:
                last = -gain
            frequencies[i] += 1
            left -= slots[i]
            heapq.heappush(heap, offer(i))
        margin = min([last / (refused or -heap[0][0]) - 1, *singles])
    centre, *sides, sentinel = frequencies
    return [*reversed(sides), centre, *sides, sentinel], float(margin)


@pytest.mark.parametrize("function", [gaussian_frequencies_reference, gaussian_frequencies])
def test_the_stored_tables(device, function):
    scales = torch.from_numpy(SCALES[1:].copy()).to(device)
    firsts, sizes, frequencies = (t.cpu() for t in function(scales, SUPPORT, PROBABILITY_TOTAL))
    assert (firsts.dtype, sizes.dtype, frequencies.dtype) == (torch.int32,) * 3
    assert frequencies.shape == (COUNT - 1, 2 * 384 + 2)
    tables = [(0, [PROBABILITY_TOTAL]), *tables_of(firsts, sizes, frequencies)]
    assert TableSet(tables, skip=True) == gaussian_tables()


def test_the_stored_tables_have_no_near_tie():
    margins = tie_margins(torch.from_numpy(SCALES[1:].copy()), SUPPORT, PROBABILITY_TOTAL)
    assert float(margins.min()) == pytest.approx(4.47e-7, rel=0.01)


CASES = [
    # scale, support, total: even and odd totals, few and many entries, tables that leave no slot or hardly one
    (0.05, 6.0, 4096),
    (0.4527, 6.0, 1024),
    (1.3, 4.0, 1001),
    (2.0, 6.3, 255),
    (7.77, 6.0, 2048),
    (16.1, 3.0, 102),
    (16.1, 3.0, 100),
    (30.0, 5.0, 2**11),
    (3.0, 1.5, 4096),  # these two have sentinels of some weight
    (0.9, 0.5, PROBABILITY_TOTAL),
    (0.3, 1.0, 4),
    (0.3, 1.0, 5),
    (90.0, 7.0, 3000),
    (float(SCALES[42]), 6.0, PROBABILITY_TOTAL),  # of the stored tables the one with the nearest tie
]


@pytest.mark.parametrize("scale, support, total", CASES)
def test_other_tables_follow_the_rule(device, scale, support, total):
    scales = torch.tensor([scale], dtype=torch.float64)
    expected, margin = greedy(scale, support, total)
    for found in (
        gaussian_frequencies_reference(scales, support, total),
        gaussian_frequencies(scales.to(device), support, total),
    ):
        assert tables_of(*found) == [(-((len(expected) - 2) // 2), expected)]
    assert float(tie_margins(scales, support, total)) == pytest.approx(margin, rel=1e-4, abs=1e-11)


def test_random_scales(device):
    scales = torch.from_numpy(np.random.default_rng(5).lognormal(0, 1.5, 24))
    expected = gaussian_frequencies_reference(scales, 5.0, PROBABILITY_TOTAL)
    found = gaussian_frequencies(scales.to(device), 5.0, PROBABILITY_TOTAL)
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got.cpu(), want)
    for first, frequencies in tables_of(*expected):
        assert sum(frequencies) == PROBABILITY_TOTAL
        assert min(frequencies) >= 1
        assert frequencies[:-1] == frequencies[-2::-1]
        assert len(frequencies) == 2 - 2 * first


@pytest.mark.parametrize("function", [gaussian_frequencies_reference, gaussian_frequencies])
def test_scales_without_a_table(device, function):
    bad = [math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 2.01, 1e300]
    scales = torch.tensor([2.0, *bad, 1.0], dtype=torch.float64, device=device)
    firsts, sizes, frequencies = (t.cpu() for t in function(scales, 3.0, 256, 14))
    assert sizes.tolist() == [14, *[0] * len(bad), 8]
    assert firsts.tolist() == [-6, *[0] * len(bad), -3]
    assert frequencies.shape == (len(bad) + 2, 14)
    assert not frequencies[1:-1].any()
    assert frequencies[[0, -1]].sum(1).tolist() == [256, 256]
    for scale in bad[:-2]:
        with pytest.raises(ValueError, match="has the scale"):
            function(torch.tensor([1.0, scale], dtype=torch.float64, device=device), 3.0, 256)


@pytest.mark.parametrize("function", [gaussian_frequencies_reference, gaussian_frequencies])
def test_widths(device, function):
    scales = torch.tensor([0.7, 3.0], dtype=torch.float64, device=device)
    narrow, wide = function(scales, 6.0, 1024), function(scales, 6.0, 1024, 101)
    assert narrow[2].shape == (2, 38)
    assert wide[2].shape == (2, 101)
    assert tables_of(*narrow) == tables_of(*wide)
    least = function(scales[:0], 6.0, 1024)
    assert [tuple(t.shape) for t in least] == [(0,), (0,), (0, 4)]


def test_tables_of_scales_are_those_of_the_kernel(device, monkeypatch):
    """The public function: by the reference for tensors of the CPU, else by the kernel, on a GPU or interpreted."""
    scales = [0.05, *SCALES[[1, 20]], 9.5, 30.0]
    wanted = [
        (first, frequencies)
        for first, frequencies in (
            (-((len(expected) - 2) // 2), expected)
            for expected, _ in (greedy(scale, SUPPORT, PROBABILITY_TOTAL) for scale in scales)
        )
    ]
    by_reference = rans.gaussian_tables(scales)
    assert by_reference == TableSet(wanted)
    assert not by_reference.skip
    assert list(by_reference.frequencies(2)) == list(gaussian_tables().frequencies(20))
    monkeypatch.setattr(gaussian, "gaussian_frequencies_reference", gaussian._frequencies_on_gpu)
    assert rans.gaussian_tables(torch.tensor(scales, dtype=torch.float64, device=device)) == by_reference


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, -1.0], [math.nan], [256.1], [math.inf], [[1.0]], [1.0] * 257, 1.0])
def test_scales_that_have_no_tables(scales):
    with pytest.raises(ValueError):
        rans.gaussian_tables(scales)


def test_a_table_that_rounding_would_decide_is_refused(monkeypatch):
    monkeypatch.setattr(gaussian, "LEAST_MARGIN", 1e-4)
    with pytest.raises(ValueError, match=r"of the scale 8\.0: move it a little"):
        rans.gaussian_tables([2.0, 8.0])


def test_arguments_that_make_no_tables():
    scales = torch.ones(2, dtype=torch.float64)
    for arguments in (
        (scales.float(), 6.0, 1024),
        (scales[None], 6.0, 1024),
        (scales, 0.0, 1024),
        (scales, math.nan, 1024),
        (scales, 6.0, 3),
        (scales, 6.0, 2**16 + 1),
        (scales, 6.0, 1024, 3),
    ):
        with pytest.raises(ValueError):
            gaussian_frequencies(*arguments)


def test_table_operator(device):
    scales = torch.tensor([0.3, 1.0], dtype=torch.float64, device=device)
    torch.library.opcheck(OPERATORS.gaussian_frequencies.default, (scales, 3.0, 64, 8))


def test_masses_are_right_to_1e_12():
    """What `tie_margins` takes for granted, of masses as the reference computes them."""
    mpmath = pytest.importorskip("mpmath")
    for scale in (0.11, 1.0, 9.7, 64.0, 256.0):
        scales = torch.tensor([scale], dtype=torch.float64)
        reach = math.ceil(6 * scale)
        _, _, mass, _ = gaussians._entries(scales, 6.0, reach)
        with mpmath.workprec(120):
            width = mpmath.mpf(scale) * mpmath.sqrt(2)
            for k in {0, 1, reach // 3, reach // 2, reach}:
                ends = [mpmath.erfc((k + half) / width) for half in (-mpmath.mpf(0.5), mpmath.mpf(0.5))]
                assert float(mass[0, k]) == pytest.approx(float((ends[0] - ends[1]) / 2), rel=1e-12)
