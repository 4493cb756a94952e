"""Systems with an entropy side of integers: layers by their definition, latents that no rounding touches."""

from __future__ import annotations

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_zoo import as_input, lively
from torch import nn

import fastcodec
from fastcodec import container
from fastcodec.cli import main
from fastcodec.codec import Codec
from fastcodec.errors import ExactnessError, UnsupportedError
from fastcodec.kernels import rans
from fastcodec.models import zoo
from fastcodec.models.zoo import integerize as integer
from fastcodec.models.zoo.context import RASTER_TAPS, MaskedConvolution

pytestmark = pytest.mark.usefixtures("one_thread")

SYSTEMS = ["bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018-checkerboard"]
SYSTEMS += ["cheng2020-checkerboard", "elic2022-official", "elic2022-chandelier", "mbt2018"]


@pytest.fixture(scope="module")
def photograph(photographs) -> np.ndarray:
    return np.ascontiguousarray(photographs["chelsea"][40:232, 90:346])


@pytest.fixture(scope="module")
def converted(photograph):
    """name -> (the float system, its integer twin, the report, an input)."""
    made = {}

    def get(name: str):
        if name not in made:
            model = lively(name, photograph[:128, :128])
            x = as_input(photograph[:64, :64] if name == "mbt2018" else photograph)
            twin = integer.integerized(model, [x])
            made[name] = (model, twin, twin.report, x)
        return made[name]

    return get


# ---- layers


def definition(layer: integer.IntegerConvolution, x: np.ndarray, taps) -> np.ndarray:
    """One output vector by the formulas of the module's text, in Python's integers.

    x: [inputs, n] of floats, what each of the n taps sees; taps: their indexes into the weight's last axis.
    """
    weight = layer.weight.flatten(2).numpy().astype(object)
    bits = layer.input_bits.tolist()
    out = []
    for o in range(len(weight)):
        total = int(layer.bias[o])
        for tap, i in itertools.product(range(x.shape[1]), range(x.shape[0])):
            whole = int(np.floor(x[i, tap] * 2.0 ** bits[i] + 0.5))
            total += int(weight[o, i, taps[tap]]) * max(-32767, min(32767, whole))
        shift = int(layer.weight_bits[o]) - int(layer.output_bits)
        whole = (total + (1 << (shift - 1))) >> shift if shift > 0 else total << -shift
        out.append(max(-(2**31) + 1, min(2**31 - 1, whole)) * 2.0 ** -int(layer.output_bits))
    return np.array(out)


def made(layer: nn.Module, twin: integer.IntegerConvolution, loudest: float = 3.0) -> integer.IntegerConvolution:
    with torch.no_grad():
        layer.weight.normal_(0, 0.3)
        layer.bias.normal_()
    weight = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
    twin.set_from(weight, layer.bias, torch.rand(twin.inputs) * loudest, 20.0)
    return twin


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 2)])
def test_convolution_is_its_definition(kernel, stride):
    torch.manual_seed(kernel)
    layer = nn.Conv2d(5, 4, kernel, stride, kernel // 2)
    twin = made(layer, integer.IntegerConv2d(layer))
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64) * 6  # some beyond the range that calibration gave
    y = twin(x)
    padded = F.pad(x, [kernel // 2] * 4).numpy()
    for b, row, column in itertools.product(range(2), range(y.shape[2]), range(y.shape[3])):
        seen = padded[b, :, row * stride : row * stride + kernel, column * stride : column * stride + kernel]
        expected = definition(twin, seen.reshape(5, -1), range(kernel**2))
        assert np.array_equal(y[b, :, row, column].numpy(), expected)
    if kernel == 1:
        assert torch.equal(twin.rows(x[0].flatten(1).T), y[0].flatten(1).T)


def test_transposed_convolution_is_its_definition():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(5, 3, 5, 2, 2, output_padding=1)
    twin = made(layer, integer.IntegerConvTranspose2d(layer))
    x = torch.randn(1, 5, 3, 4, dtype=torch.float64)
    y = twin(x)
    assert y.shape == layer(x.float()).shape
    for row, column in itertools.product(range(y.shape[2]), range(y.shape[3])):
        # Input (i, j) reaches output (2 i + a - 2, 2 j + b - 2) by the kernel's element (a, b).
        pairs = [
            (i, j, (row + 2 - 2 * i) * 5 + column + 2 - 2 * j)
            for i, j in itertools.product(range(3), range(4))
            if 0 <= row + 2 - 2 * i < 5 and 0 <= column + 2 - 2 * j < 5
        ]
        seen = np.stack([x[0, :, i, j].numpy() for i, j, _ in pairs], 1)
        assert np.array_equal(y[0, :, row, column].numpy(), definition(twin, seen, [tap for *_, tap in pairs]))


def test_context_is_its_definition():
    torch.manual_seed(0)
    layer = MaskedConvolution(4, RASTER_TAPS)
    twin = made(layer, integer.IntegerContext(layer))
    seen = torch.randn(3, 12, 4, dtype=torch.float64)
    phi = twin.on_rows(RASTER_TAPS)(seen.flatten(1))
    for row, out in zip(seen, phi, strict=True):
        assert np.array_equal(out.numpy(), definition(twin, row.T.numpy(), range(12)))
    with pytest.raises(ValueError, match="mask"):
        twin.on_rows(RASTER_TAPS[1:])


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(48, 24, 3, padding=1), lambda: nn.ConvTranspose2d(48, 24, 4, 2, 1)])
def test_integers_are_near_the_floats(make):
    torch.manual_seed(0)
    layer = make()
    twin = integer.IntegerConv2d(layer) if isinstance(layer, nn.Conv2d) else integer.IntegerConvTranspose2d(layer)
    x = torch.randn(1, 48, 9, 9) * torch.logspace(-2, 2, 48)[:, None, None]
    made(layer, twin)
    weight = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
    with torch.no_grad():
        y = layer.double()(x.double())
        twin.set_from(weight, layer.bias, x.abs().amax((0, 2, 3)), float(y.abs().max()))
        assert float((twin(x) - y).abs().max() / y.abs().max()) < 2e-4


def test_leaky_relu():
    layer = integer.IntegerLeakyReLU(0.01)
    x = torch.tensor([3.25, 0.0, -1.0, -(2.0**31) + 1], dtype=torch.float64)
    assert layer(x).tolist() == [3.25, 0.0, -655 / 65536, -(2**31 - 1) * 655 / 65536]


# ---- systems


@pytest.mark.parametrize("name", SYSTEMS)
def test_cost(name, converted):
    model, twin, report, x = converted(name)
    assert report.images == 1
    assert abs(report.cost) < 0.003
    compressed = twin.compress(x)
    assert abs(compressed.estimated_bits / report.integer_bits - 1) < 1e-9
    # The images are those of the float system, but for the rounding of the means.
    ours, theirs = twin.decompress(compressed.payload, compressed.shape), model.compress(x)
    assert float((ours - model.decompress(theirs.payload, theirs.shape)).abs().mean()) < 2e-3


def in_another_order(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b, summed from the last term to the first by uneven parts."""
    parts = [slice(k, k + 7) for k in range(0, a.shape[-1], 7)]
    return sum(a[..., part] @ b[..., part, :] for part in reversed(parts))


@pytest.mark.parametrize("name", SYSTEMS[1:-1])
def test_latents_do_not_depend_on_how_the_decoder_computes(name, converted, monkeypatch):
    _, twin, _, x = converted(name)
    compressed = twin.compress(x)
    arrived = []

    def decoded(model) -> torch.Tensor:
        hook = model.g_s.register_forward_pre_hook(lambda _, arguments: arrived.append(arguments[0]))
        model.decompress(compressed.payload, compressed.shape)
        hook.remove()
        return arrived.pop().double()

    expected = decoded(twin)
    wide = copy.deepcopy(twin)
    for network in (wide.g_a, wide.g_s, wide.h_a):
        network.double()
    assert torch.equal(decoded(wide), expected)
    contiguous = copy.deepcopy(twin).to(memory_format=torch.contiguous_format)
    assert torch.equal(decoded(contiguous), expected)
    monkeypatch.setattr("fastcodec.models.zoo.balle2018.channels_last", lambda z: z.contiguous())
    assert torch.equal(decoded(twin), expected)
    torch.set_num_threads(2)
    try:
        assert torch.equal(decoded(twin), expected)
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr(integer, "product", in_another_order)
    assert torch.equal(decoded(twin), expected)


def test_the_float_system_does_depend_on_it(converted):
    """What the test before this one would miss if it could not see a difference."""
    model, _, _, x = converted("mbt2018-checkerboard")
    compressed = model.compress(x)
    wide = copy.deepcopy(model)
    for network in (wide.h_s, wide.context_prediction, wide.entropy_parameters):
        network.double()
    wide.h_s.register_forward_pre_hook(lambda _, arguments: arguments[0].double())
    latents = (part.decompress_latents(compressed.payload, compressed.shape).double() for part in (model, wide))
    assert not torch.equal(*latents)


@pytest.mark.parametrize("name", ["mbt2018-mean", "cheng2020-checkerboard"])
def test_a_saved_one_is_the_same(name, converted, tmp_path):
    _, twin, _, x = converted(name)
    torch.save(twin.state_dict(), tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    again = zoo.load(name, state)
    compressed = twin.compress(x)
    assert again.compress(x).payload == compressed.payload
    assert torch.equal(
        again.decompress(compressed.payload, compressed.shape), twin.decompress(compressed.payload, compressed.shape)
    )
    assert Codec(again).identity == Codec(twin).identity
    bias = next(name for name in state if name.endswith("weight_bits")).replace("weight_bits", "bias")
    with pytest.raises(ExactnessError, match="2\\^53"):
        zoo.load(name, state | {bias: torch.full_like(state[bias], 2**53)})


def test_files_of_a_converted_codec(converted, photograph, tmp_path, monkeypatch):
    model, _, report, _ = converted("mbt2018-checkerboard")
    codec = fastcodec.integerize(Codec(model, quality=7), [photograph])
    assert (codec.quality, codec.model.report) == (7, report)
    data = codec.encode(photograph)
    assert container.info(data).portable
    codec.save(tmp_path / "model.pth")
    again = Codec.load(tmp_path / "model.pth", device="cpu")
    # Another kind of machine decodes it without a word.
    monkeypatch.setattr("fastcodec.engines.whole_image.kind_of", lambda device: "another kind")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(again.decode(data, out="numpy"), codec.decode(data, out="numpy"))
        again.verify(data)


def test_tables_are_those_of_the_conversion(converted, monkeypatch):
    """Nothing is computed from the CDFs at load."""
    _, twin, _, x = converted("mbt2018-mean")
    compressed, state = twin.compress(x), twin.state_dict()
    monkeypatch.setattr(rans.TableSet, "from_pmfs", None)
    again = zoo.load("mbt2018-mean", state)
    assert again.compress(x).payload == compressed.payload
    broken = state | {"entropy_bottleneck.coder_tables": state["entropy_bottleneck.coder_tables"][:-2]}
    damaged = zoo.load("mbt2018-mean", broken)
    for _ in range(2):
        with pytest.raises(ExactnessError, match="tables"):
            damaged.compress(x)


def test_command_line(photograph, tmp_path, capsys):
    for part in ("images", "out"):
        (tmp_path / part).mkdir()
    Image.fromarray(photograph).save(tmp_path / "images" / "cat.png")
    model = lively("cheng2020-checkerboard", photograph[:64, :64])
    Codec(model).save(tmp_path / "float.pth")
    portable, images = str(tmp_path / "portable.pth"), str(tmp_path / "images")
    assert main(["integerize", str(tmp_path / "float.pth"), "-o", portable, "--images", images]) == 0
    assert "bits on 1 images" in capsys.readouterr().err
    files = str(tmp_path / "out")
    assert main(["compress", images, "-o", files, "--model", portable]) == 0
    assert main(["verify", files, "--model", portable]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "out" / "cat.fic")]) == 0
    assert "not portable" not in capsys.readouterr().out
    assert main(["integerize", portable, "-o", str(tmp_path / "twice.pth"), "--images", images]) == 1
    assert "already" in capsys.readouterr().err
    assert main(["integerize", portable, "-o", portable, "--images", images]) == 1
    assert "would be lost" in capsys.readouterr().err
    assert main(["integerize", str(tmp_path / "float.pth"), "-o", portable, "--images", files]) == 1
    assert "no images" in capsys.readouterr().err


def test_what_calibration_takes(photograph, tmp_path):
    system = lively("mbt2018-mean", photograph[:64, :64]).train()
    system.update(fit_quantiles=True)
    Image.fromarray(photograph[:64, :64]).save(tmp_path / "cat.png")
    path, before = tmp_path / "cat.png", copy.deepcopy(system.state_dict())
    one = fastcodec.integerize(system, [photograph[:64, :64]])
    assert system.training, "it stays as it is"
    assert all(torch.equal(tensor, before[name]) for name, tensor in system.state_dict().items())
    for several in ([str(path)], [path], photograph[None, :64, :64]):
        again = fastcodec.integerize(system, several)
        assert (again.identity, again.model.report) == (one.identity, one.model.report)
    for single in (photograph[:64, :64], torch.zeros(3, 64, 64, dtype=torch.uint8), Image.open(path), path, str(path)):
        with pytest.raises(TypeError, match="into a list"):
            fastcodec.integerize(system, single)


def test_exponents_out_of_range():
    layer = integer.IntegerConv2d(nn.Conv2d(1, 1, 1))
    for value in (101, -101, 2**31 - 1, -(2**31)):  # the last is its own magnitude in 32 bits
        with pytest.raises(ExactnessError, match="exponents"):
            layer.load_state_dict(layer.state_dict() | {"input_bits": torch.tensor([value], dtype=torch.int32)})


def test_what_cannot_be_converted(photograph):
    x = as_input(photograph[:64, :64])
    with pytest.raises(ValueError, match="images"):
        integer.integerized(lively("mbt2018-mean", photograph[:64, :64]), [])
    for model, message in (
        (lively("mbt2018-mean", photograph[:64, :64], rounding="latents"), "is a RoundedGaussianConditional"),
        (zoo.SYSTEMS["cheng2020-checkerboard-mixture"].model(8), "is a MixtureConditional"),
    ):
        with pytest.raises(UnsupportedError, match=f"gaussian_conditional {message}"):
            integer.integerized(model, [x])
    variable = zoo.SYSTEMS["mbt2018-mean-vbr"].model(8, 12)
    with pytest.raises(UnsupportedError, match="variable-rate"):
        integer.integerized(variable, [x])
    twin = integer.integerized(lively("bmshj2018-factorized", photograph[:64, :64]), [x])
    with pytest.raises(UnsupportedError, match="already"):
        integer.integerized(twin, [x])
    model = lively("mbt2018-checkerboard", photograph[:64, :64])
    with torch.no_grad():
        model.entropy_parameters[2].bias[3] = float("inf")
    with pytest.raises(ExactnessError, match=r"entropy_parameters\.2\.bias"):
        integer.integerized(model, [x])


def test_this_machine_is_exact(monkeypatch):
    assert integer.float64_is_exact(torch.device("cpu"))
    monkeypatch.setattr(integer, "product", lambda a, b: (a.float() @ b.float()).double())
    assert not integer.float64_is_exact(torch.device("cpu"))
