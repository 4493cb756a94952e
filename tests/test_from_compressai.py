"""CompressAI's models as codecs: which network a state dict is of, files of every kind of image, the command line, and
what happens where a floating-point file does not decode."""

from __future__ import annotations

import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_zoo import as_input, lively
from torch import nn

import fastcodec
from fastcodec import container
from fastcodec.cli import main
from fastcodec.codec import Codec
from fastcodec.engines import whole_image as zoo_codec
from fastcodec.engines.whole_image import network_input
from fastcodec.errors import (
    CorruptStreamError,
    ModelMismatchError,
    NotPortableWarning,
    TargetError,
    UnknownModelError,
    UnsupportedError,
)
from fastcodec.images import Picture, to_picture
from fastcodec.kernels import rans
from fastcodec.models import zoo
from fastcodec.models.zoo import checkpoints as convert
from fastcodec.models.zoo.context import RASTER_TAPS, mask_of
from fastcodec.models.zoo.kamisli2024 import SteppedBottleneck

pytestmark = pytest.mark.usefixtures("one_thread")

# CompressAI's classes, with arguments that make small networks of them.
GROUPS = (2, 2, 4, 8, 8)
ARGUMENTS = {
    "FactorizedPrior": {},
    "FactorizedPriorReLU": {},
    "ScaleHyperprior": {},
    "MeanScaleHyperprior": {},
    "JointAutoregressiveHierarchicalPriors": {},
    "Cheng2020Anchor": None,  # takes N alone
    "Cheng2020Attention": None,
    "Cheng2020AnchorCheckerboard": None,
    "Elic2022Official": {"groups": GROUPS},
    "Elic2022Chandelier": {"groups": GROUPS},
    "ScaleHyperpriorVbr": {"vr_entbttlnck": True},
    "MeanScaleHyperpriorVbr": {"vr_entbttlnck": True},
    "JointAutoregressiveHierarchicalPriorsVbr": {},
}
VARIABLE = [name for name in zoo.SYSTEMS if name.endswith("-vbr")]


@pytest.fixture(scope="module")
def photograph(photographs) -> np.ndarray:
    return np.ascontiguousarray(photographs["coffee"][100:228, 200:456])


@pytest.fixture(scope="module")
def codecs(photograph) -> dict[str, Codec]:
    """Every system that CompressAI has, by way of a state dict that does not say what it is."""
    models = {name: lively(name, photograph[:64, :128]) for name in convert.CLASSES.values()}
    return {name: fastcodec.from_compressai(model.state_dict()) for name, model in models.items()}


@pytest.fixture(scope="module")
def mean(codecs) -> Codec:
    return codecs["mbt2018-mean"]


@pytest.fixture(scope="module")
def variable(codecs) -> Codec:
    return codecs["mbt2018-mean-vbr"]


# ---- beside CompressAI


def random_weights(compressai, kind: str) -> nn.Module:
    """CompressAI's model with latents, medians, contexts and reconstruction offsets that are not all zero."""
    torch.manual_seed(1)
    arguments = ARGUMENTS[kind]
    make = getattr(compressai.models, kind)
    model = make(16).eval() if arguments is None else make(16, 24, **arguments).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if part.endswith("quantiles"):
                parameter[:, 0, 1] += torch.rand(len(parameter)) * 3
            elif "context_prediction" in part or part.endswith(("entropy_parameters.4.bias", "h_s.4.bias")):
                parameter.add_(torch.rand_like(parameter) * (0.05 if "weight" in part else 1))
            elif "factor" in part:
                parameter.uniform_(-0.5, 0.5)
            elif part == "gayn2zqstep.4.bias":
                parameter.add_(0.4)
        last = [layer for layer in model.g_a if isinstance(layer, nn.Conv2d)][-1]
        last.weight.mul_(100 if kind.startswith("Elic") else 40)
    model.update(force=True)
    return model


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_files_hold_what_compressai_would_decode(compressai, kind, photograph):
    theirs = random_weights(compressai, kind)
    codec = fastcodec.from_compressai(theirs)
    state = theirs.state_dict()
    assert codec.model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[part]) for part, tensor in codec.model.state_dict().items())
    x = as_input(photograph[:64, :128])
    seen = []
    theirs.g_s.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for level in (0, 4, 7) if codec.model.variable_rate else (None,):
        options, quality = ({}, None) if level is None else ({"s": level}, codec.model.quality_of(level))
        if ARGUMENTS[kind] == {"vr_entbttlnck": True}:  # their tables are for one level at a time
            theirs.update(force=True, scale=theirs.Gain[level].detach().abs())
        with torch.no_grad():
            coded = theirs.compress(x, **options)
            image = theirs.decompress(coded["strings"], coded["shape"], **options)["x_hat"]
        data = codec.encode(photograph[:64, :128], quality)
        y_hat = seen.pop()[0].permute(1, 2, 0)
        assert y_hat.std() > 0.5
        # Equal up to float32's rounding: a symbol that differed would be off by a step.
        torch.testing.assert_close(codec.latents(data), y_hat, rtol=1e-4, atol=1e-4)
        levels = (image[0] * 255).permute(1, 2, 0).numpy()
        assert np.abs(codec.decode(data, out="numpy") - levels).max() < 0.51


def test_unknown_classes(compressai):
    class Mine(compressai.models.MeanScaleHyperprior):
        pass

    mine = Mine(16, 24)
    with pytest.raises(UnknownModelError, match=r"Mine is none of .*MeanScaleHyperprior, .*Elic2022Official"):
        fastcodec.from_compressai(mine)
    assert fastcodec.from_compressai(mine, "mbt2018-mean").encode(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UnknownModelError, match=r"torch\.nn\.modules\.linear\.Linear"):
        fastcodec.from_compressai(nn.Linear(2, 3))
    switched = compressai.models.ScaleHyperpriorVbr(16, 24)
    switched.no_quantoffset = True
    with pytest.raises(UnsupportedError, match="no_quantoffset=True"):
        fastcodec.from_compressai(switched)
    wrapped = nn.DataParallel(compressai.models.FactorizedPrior(16, 24))
    assert type(fastcodec.from_compressai(wrapped).model) is zoo.SYSTEMS["bmshj2018-factorized"].model


# ---- which system it is


def test_a_state_dict_tells_its_system(codecs):
    for name, codec in codecs.items():
        assert type(codec.model) is zoo.SYSTEMS[name].model
    assert len({codec.identity for codec in codecs.values()}) == len(codecs) == 13


def test_state_dicts_of_all_sorts(mean, photograph):
    state = mean.model.state_dict()
    older = {f"module.{name}": tensor for name, tensor in state.items() if not name.endswith("bound")}
    for given in (older, {"epoch": 7, "state_dict": state, "optimizer": {"lr": 1e-4}}):
        assert fastcodec.from_compressai(given).identity == mean.identity
    with pytest.raises(UnknownModelError, match="of no system"):
        fastcodec.from_compressai({name: tensor for name, tensor in state.items() if "g_s" not in name})
    with pytest.raises(UnknownModelError, match="not the weights of mbt2018: "):
        fastcodec.from_compressai(state, "mbt2018")
    with pytest.raises(UnknownModelError, match=r"no system named 'mbt2019'.*cheng2020-anchor"):
        fastcodec.from_compressai(state, "mbt2019")
    unnamed = {0: torch.zeros(1)}
    for nothing in (
        {},
        {"a": 1},
        unnamed,
        {"state_dict": unnamed},
        {"state_dict": [1]},
        {"state_dict": state, "fastcodec": 3},
    ):
        with pytest.raises(UnknownModelError):
            fastcodec.from_compressai(nothing)
    anchor = lively("cheng2020-serial", photograph[:64, :64]).state_dict()
    named = fastcodec.from_compressai(anchor, "cheng2020-anchor")
    assert named.identity == fastcodec.from_compressai(anchor).identity


def test_tables_that_cannot_code_are_refused_at_once(mean):
    """Not at the first image, and not only by its decoder: fewer tables than channels would lose channels."""
    state = mean.model.state_dict()

    def changed(part: str, **buffers) -> dict:
        return state | {f"{part}.{name}": change(state[f"{part}.{name}"]) for name, change in buffers.items()}

    def two(tensor):
        return tensor[:2]

    for broken in (
        changed("entropy_bottleneck", _offset=two, _cdf_length=two, _quantized_cdf=two),
        changed("entropy_bottleneck", _offset=two),
        changed("entropy_bottleneck", _quantized_cdf=torch.zeros_like),
        changed("entropy_bottleneck", _quantized_cdf=torch.Tensor.float),
        changed("entropy_bottleneck", _quantized_cdf=lambda cdf: cdf[None]),
        changed("gaussian_conditional", _cdf_length=torch.neg),
        changed("gaussian_conditional", _cdf_length=lambda length: length + 9999),
        changed("gaussian_conditional", scale_table=two),
    ):
        with pytest.raises(UnknownModelError, match="not the weights of mbt2018-mean: "):
            fastcodec.from_compressai(broken, "mbt2018-mean")


def test_more_scales_than_tables(compressai):
    model = compressai.models.MeanScaleHyperprior(8, 12)
    model.update(scale_table=np.geomspace(0.11, 64, 300).tolist())
    with pytest.raises(UnsupportedError, match="300 scales: the coder takes 256"):
        fastcodec.from_compressai(model)


def test_masks_tell_context_models_apart(photograph):
    supernet = lively("random-mask", photograph[:64, :64])
    assert convert.recognise(supernet.state_dict()) == "mbt2018-checkerboard"
    supernet.set_mask(mask_of(RASTER_TAPS))
    assert convert.recognise(supernet.state_dict()) == "mbt2018"
    assert type(fastcodec.from_compressai(supernet.state_dict(), "random-mask").model) is type(supernet)


# ---- files


@pytest.mark.parametrize("name", convert.CLASSES.values())
def test_odd_sizes(codecs, name, photograph):
    codec = codecs[name]
    for height, width in ((1, 1), (17, 33), (70, 90)):
        picture = to_picture(photograph[:height, :width])
        encoded = codec.encode(picture)
        assert len(encoded) <= 1.01 * encoded.estimated_bits / 8 + 100
        x = network_input(codec.model, picture.pixels)
        model = codec.model.at(codec.quality)
        compressed = model.compress(x)
        expected = model.decompress(compressed.payload, compressed.shape)[0, :, :height, :width]
        decoded = codec.decode(encoded, out="tensor")
        assert torch.equal(decoded, (expected * 255).round().to(torch.uint8))
        codec.verify(encoded)
        facts = fastcodec.info(encoded)
        assert (facts.width, facts.height, facts.tiles, facts.portable) == (width, height, 1, False)
        assert facts.written_on == codec.machine
        assert facts.written_on.startswith("cpu ")


def test_alpha_gray_and_metadata(mean, photograph):
    alpha = np.arange(70 * 90, dtype=np.uint8).reshape(70, 90)
    picture = Picture(photograph[:70, :90, 1].copy(), alpha, icc=b"a profile", exif=b"II*\0")
    data = mean.encode(picture)
    decoded = mean.decode(data, out="picture")
    assert (decoded.mode, decoded.icc, decoded.exif) == ("LA", picture.icc, picture.exif)
    assert np.array_equal(decoded.alpha, alpha)
    assert np.array_equal(decoded.pixels, mean.decode(mean.encode(picture.pixels), out="numpy"))
    opaque = mean.encode(np.dstack([photograph[:70, :90], np.full((70, 90), 255, np.uint8)]))
    assert len(opaque) == len(mean.encode(photograph[:70, :90])) + 1  # the alpha's length, 0
    assert (mean.decode(opaque, out="numpy")[..., 3] == 255).all()

    parsed = container.read(data)
    tile = parsed.tile(0)
    for png in (bytes(tile.alpha)[:-30], bytes(container.read(data).tile(0).payload)):
        damaged = container.write(parsed.header, [container.TileData(tile.payload, png)])
        for call in (mean.decode, mean.verify):
            with pytest.raises(CorruptStreamError, match="alpha"):
                call(damaged)


def test_the_methods_of_a_codec(mean, photograph):
    images = [photograph[:40, :50], photograph[:20, :30], photograph[40:80, :50]]
    files = mean.encode_batch(images)
    assert files == [mean.encode(image) for image in images]
    assert mean.encode_batch([to_picture(images[0])], preset="latency")[0].quality == mean.quality == 1
    singly = [mean.decode(data, out="numpy") for data in files]
    for ours, one in zip(mean.decode_batch(files, out="numpy"), singly, strict=True):
        assert np.array_equal(ours, one)
    decoded = mean.decode_tensor([files[0], files[2]])
    decoded.check()
    assert np.array_equal(decoded.pixels.permute(0, 2, 3, 1).numpy(), np.stack([singly[0], singly[2]]))
    out = torch.zeros(1, 3, 20, 30, dtype=torch.uint8)
    assert mean.decode_tensor([files[1]], out=out).pixels is out
    assert np.array_equal(out[0].permute(1, 2, 0).numpy(), singly[1])
    with pytest.raises(ValueError, match="one size"):
        mean.decode_tensor(files)
    with pytest.raises(ValueError, match="out must be"):
        mean.decode_tensor(files[:1], out=out)
    assert mean.latents(files[0]).shape == (4, 4, 24)
    assert isinstance(mean.decode(files[0]), Image.Image)


def test_what_such_a_codec_cannot_do(mean, photograph):
    data = mean.encode(photograph[:40, :50])
    for call in (mean.decode, lambda d, region: mean.decode_tensor([d], region=region)):
        with pytest.raises(UnsupportedError, match="whole images"):
            call(data, region=(0, 0, 10, 10))
    with pytest.raises(UnsupportedError, match="'fast'"):
        mean.decode(data, precision="fast")
    with pytest.raises(UnsupportedError, match="one rate"):
        mean.encode(photograph[:40, :50], quality=60)
    with pytest.raises(UnsupportedError, match="one rate"):
        mean.encode(to_picture(photograph[:40, :50]), target_bytes=1000)
    with pytest.raises(ModelMismatchError):
        mean.decode(fastcodec.Codec.load("swift", device="cpu").encode(photograph[:20, :20]))


# ---- variable rate


@pytest.mark.parametrize("name", VARIABLE)
def test_quality_is_the_place_on_the_scale_of_gains(codecs, name):
    model = codecs[name].model
    gains = model.gains.tolist()
    assert [model.quality_of(level) for level in range(8)] == [1, 15, 29, 43, 58, 72, 86, 100]
    assert [model.gain(model.quality_of(level)) for level in range(8)] == gains
    every = [model.gain(quality) for quality in range(1, 101)]
    assert every == sorted(every)
    assert model.gain(22) == pytest.approx((gains[1] * gains[2]) ** 0.5)
    with pytest.raises(ValueError, match="levels 0 to 7"):
        model.quality_of(8)


@pytest.mark.parametrize("name", VARIABLE)
def test_rates(codecs, name, photograph):
    codec, image = codecs[name], photograph[:70, :90]
    assert codec.quality == 60
    assert codec.encode(image) == codec.encode(image, 60)
    sizes = []
    for quality in (1, 33, 86, 100):
        encoded = codec.encode(to_picture(image), quality)
        sizes.append(len(encoded))
        assert encoded.quality == fastcodec.info(encoded).quality == quality
        assert len(encoded) <= 1.01 * encoded.estimated_bits / 8 + 100
        codec.verify(encoded)
    assert sizes == sorted(set(sizes))
    parsed = container.read(encoded)
    lie = container.Header(**{**vars(parsed.header), "quality": 30})
    with pytest.raises(CorruptStreamError):
        codec.decode(container.write(lie, [parsed.tile(0)]))
    for quality in (0, 101, 2.5):
        with pytest.raises(ValueError, match="not an integer from 1 to 100"):
            codec.encode(image, quality)


def test_sizes_can_be_asked_of_a_variable_rate(variable, photograph):
    picture = to_picture(photograph[:70, :90])
    low, high = (len(variable.encode(picture, quality)) for quality in (1, 100))
    encoded = variable.encode(picture, target_bytes=(low + high) // 2)
    assert low < len(encoded) <= (low + high) // 2
    with pytest.raises(TargetError):
        variable.encode(picture, target_bytes=10)


@pytest.mark.parametrize("step", [0.5, 3.0])
def test_hyper_latents_in_steps_cost_what_their_density_says(step):
    torch.manual_seed(2)
    model = SteppedBottleneck(3).requires_grad_(False)
    model.quantiles[:, 0, 1] = torch.tensor([0.3, -0.2, 1.4])
    model.update()
    at = model.at(step)
    z = torch.empty(1, 3, 20, 30).uniform_(-9, 9)
    passes, z_hat, bits = at.encode(z)
    assert (z_hat - z).abs().max() <= step / 2 + 1e-5
    edges = z_hat.double().reshape(3, 1, -1) + torch.tensor([[[-step / 2]], [[step / 2]]])[:, None]
    below, above = (torch.sigmoid(model.logits(edge)) for edge in edges)
    assert bits == pytest.approx(float(-(above - below).log2().sum()), rel=1e-4)
    (payload,) = rans.encode([passes])
    assert 8 * len(payload) <= 1.01 * bits + 200
    decoder = rans.Decoder([payload])
    assert torch.equal(at.decode(decoder, 20, 30), z_hat)
    decoder.finish()


def test_moving_a_variable_rate_system_takes_its_rates_along(photograph):
    model = lively("mbt2018-vbr", photograph[:64, :64])
    before = model.at(40).gaussian_conditional
    assert model.at(40).gaussian_conditional is before
    model.to(torch.float32)
    assert model.at(40).gaussian_conditional is not before


# ---- other machines


def test_the_entropy_side_runs_on_one_thread(mean, photograph):
    """Two threads sum in another order than one, and a file would decode only where there are as many."""
    threads = {"h_s": [], "g_s": []}
    hooks = [
        getattr(mean.model, part).register_forward_hook(lambda *_, seen=seen: seen.append(torch.get_num_threads()))
        for part, seen in threads.items()
    ]
    torch.set_num_threads(3)
    try:
        mean.decode(mean.encode(photograph[:20, :20]))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
        for hook in hooks:
            hook.remove()
    assert threads == {"h_s": [1, 1], "g_s": [3]}


def test_a_file_of_another_kind_of_machine_warns(mean, photograph, monkeypatch):
    data = mean.encode(photograph[:20, :20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here = mean.decode(data, out="numpy")
    with monkeypatch.context() as patch:
        patch.setattr(zoo_codec, "kind_of", lambda device: "cuda Some GPU 9.0, torch 2.11.0")
        foreign = mean.encode(photograph[:20, :20])
    assert fastcodec.info(foreign).written_on == "cuda Some GPU 9.0, torch 2.11.0"
    for call in (mean.verify, mean.latents, mean.decode):
        with pytest.warns(NotPortableWarning, match=r"cuda Some GPU 9\.0.*this is cpu") as caught:
            call(foreign)
        assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(NotPortableWarning):
        assert np.array_equal(mean.decode(foreign, out="numpy"), here)


def test_what_the_header_may_say_of_a_machine():
    size = {"width": 5, "height": 5, "quality": 1, "identity": bytes(6), "float_entropy": True}
    for text, kept in (("", ""), ("x" * 200, "x" * 127), ("gpu ü", "gpu ?")):
        data = container.write(container.Header(**size, written_on=text), [container.TileData(b"")])
        assert container.read(data).header.written_on == kept
    good = bytearray(container.write(container.Header(**size, written_on="abc"), [container.TileData(b"")]))
    for at, value in ((15, 130), (16, 7), (18, 0x80)):  # its length, and two of its characters
        bad = bytes(good[:at]) + bytes([value]) + bytes(good[at + 1 : -8])
        with pytest.raises(CorruptStreamError):
            container.read(bad + zlib.crc32(bad).to_bytes(4, "little") + bytes(good[-4:]))


def test_a_portable_system_s_files_say_so(mean, photograph, monkeypatch):
    monkeypatch.setattr(mean.model, "portable", True)
    facts = fastcodec.info(mean.encode(photograph[:20, :20]))
    assert (facts.portable, facts.written_on, facts.tiles) == (True, "", 1)


@pytest.mark.parametrize(
    "name",
    ["bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-checkerboard", "elic2022-official", *VARIABLE],
)
def test_other_floats_end_in_a_clean_error(name, photograph, monkeypatch):
    """The decoder's floats are off by as much as those of another machine, or more: an error, or the right latents."""
    model = lively(name, photograph[:64, :128])
    groups = getattr(model, "groups", [model])
    heads = [group.entropy_parameters[4] if hasattr(group, "entropy_parameters") else model.h_s[4] for group in groups]
    for head in heads:
        head.weight.mul_(5)  # scales of many sizes, as a trained model has
    parameters = [parameter for head in heads for parameter in (head.weight, head.bias)]
    codec = Codec(model)
    monkeypatch.setattr(zoo_codec, "kind_of", lambda device: "cuda of the writer")
    data = codec.encode(photograph)
    monkeypatch.undo()
    warnings.simplefilter("ignore", NotPortableWarning)
    right = codec.latents(data)
    failed = []
    for error in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        before = [parameter.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.mul_(1 + error)
        try:
            latents = codec.latents(data)
        except CorruptStreamError as raised:
            assert "cuda of the writer wrote it" in str(raised)  # noqa: PT017
            failed.append(error)
        else:
            assert (latents - right).abs().max() < 0.1  # another symbol would be off by 1
        for parameter, exact in zip(parameters, before, strict=True):
            parameter.copy_(exact)
    assert 1e-3 in failed


def test_damage_is_not_blamed_on_the_machine(mean, photograph, monkeypatch):
    monkeypatch.setattr(zoo_codec, "kind_of", lambda device: "cuda of the writer")
    data = bytearray(mean.encode(photograph[:20, :20]))
    monkeypatch.undo()
    data[-9] ^= 1
    with pytest.warns(NotPortableWarning), pytest.raises(CorruptStreamError, match=r"tile 0 is damaged.*match$"):
        mean.decode(data)


# ---- model files


def test_model_files(mean, variable, photograph, tmp_path):
    rounded = Codec(lively("mbt2018-mean", photograph[:64, :64], rounding="latents"))
    for number, codec in enumerate((mean, variable, rounded)):
        path = tmp_path / f"{number}.pth"
        codec.save(path)
        loaded = Codec.load(path, device="cpu")
        assert (loaded.identity, loaded.quality) == (codec.identity, codec.quality)
        data = codec.encode(photograph[:20, :20])
        assert np.array_equal(loaded.decode(data, out="numpy"), codec.decode(data, out="numpy"))
    torch.save(mean.model.state_dict(), tmp_path / "plain.pth")
    assert Codec.load(str(tmp_path / "plain.pth"), device="cpu").identity == mean.identity


class Trap:
    """What a pickle could do."""

    def __reduce__(self):
        return (pytest.fail, ("a model file ran code",))


def test_files_that_are_no_models(mean, tmp_path):
    path = tmp_path / "model.pth"
    mean.save(path)
    whole = path.read_bytes()
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    for name in ("trap", "list", "other", "text", "empty", "half"):
        with pytest.raises(UnknownModelError, match=rf"{name}\.pth"):
            Codec.load(tmp_path / f"{name}.pth", device="cpu")
    with pytest.raises(FileNotFoundError):
        Codec.load(tmp_path / "no.pth", device="cpu")


# ---- the command line


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def model_file(mean, tmp_path) -> Path:
    mean.save(tmp_path / "mean.pth")
    return tmp_path / "mean.pth"


def test_there_and_back(mean, model_file, photograph, tmp_path, capsys):
    image = np.dstack([photograph[:40, :50], photograph[:40, :50, 0]])
    Image.fromarray(image).save(tmp_path / "photo.png")
    options = ("--model", model_file, "--device", "cpu")
    assert run("compress", tmp_path / "photo.png", "-o", tmp_path / "photo.fic", *options) == 0
    assert (tmp_path / "photo.fic").read_bytes() == mean.encode(image)
    for _ in range(2):
        assert run("compress", tmp_path / "photo.png", "-o", tmp_path / "folder/", *options) == 0
    assert "skipped, exists already\n" in capsys.readouterr().out
    assert (tmp_path / "folder" / "photo.fic").read_bytes() == mean.encode(image)
    assert run("verify", tmp_path / "photo.fic", *options) == 0
    assert "photo.fic: sound" in capsys.readouterr().out
    assert run("decompress", tmp_path / "photo.fic", "-o", tmp_path / "back.png", *options) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), mean.decode(mean.encode(image), out="numpy"))
    assert run("info", tmp_path / "photo.fic") == 0
    text = capsys.readouterr().out
    assert "not portable (floating point)" in text
    assert f"machine  {mean.machine}" in text
    assert run("info", "--json", tmp_path / "photo.fic") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["portable"], record["written_on"]) == (False, mean.machine)


def test_what_the_command_line_refuses(mean, model_file, photograph, tmp_path, capsys):
    Image.fromarray(photograph[:20, :30]).save(tmp_path / "photo.png")
    (tmp_path / "photo.fic").write_bytes(mean.encode(photograph[:20, :30]))
    for command in ("verify", "decompress"):
        out = ("-o", tmp_path / "out/") if command == "decompress" else ()
        assert run(command, tmp_path / "photo.fic", *out, "--device", "cpu") == 1
        assert "a model of its own: give its file with --model" in capsys.readouterr().err
    for sizing in (("-q", 50), ("--target-bytes", 900), ("--target-bpp", 0.5)):
        with pytest.raises(SystemExit) as ended:
            run("compress", tmp_path / "photo.png", "-o", tmp_path / "x.fic", "--model", model_file, *sizing)
        assert ended.value.code == 2
        assert "it has one rate" in capsys.readouterr().err
    for bad, words in ((tmp_path / "photo.png", "is no model file"), (tmp_path / "no.pth", "no such file")):
        assert run("compress", tmp_path / "photo.png", "-o", tmp_path / "x.fic", "--model", bad) == 1
        captured = capsys.readouterr()
        assert words in captured.err
        assert str(bad) in captured.err
    options = ("--model", model_file, "--device", "cpu")
    assert run("decompress", tmp_path / "photo.fic", "-o", tmp_path / "x.png", "--region", "0,0,9,9", *options) == 1
    assert "whole images" in capsys.readouterr().err


def test_a_variable_rate_on_the_command_line(variable, photograph, tmp_path, capsys):
    variable.save(tmp_path / "model.pth")
    Image.fromarray(photograph[:70, :90]).save(tmp_path / "photo.png")
    options = ("--model", tmp_path / "model.pth", "--device", "cpu", "--json")
    for name, sizing in (("a", ()), ("b", ("-q", 20)), ("c", ("--target-bytes", 800))):
        assert run("compress", tmp_path / "photo.png", "-o", tmp_path / f"{name}.fic", *options, *sizing) == 0
    usual, low, sized = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (usual["quality"], low["quality"]) == (60, 20)
    assert low["bytes"] < usual["bytes"]
    assert sized["bytes"] <= 800


def test_a_foreign_file_is_a_notice(mean, model_file, photograph, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(zoo_codec, "kind_of", lambda device: "cuda of the writer")
    (tmp_path / "photo.fic").write_bytes(mean.encode(photograph[:20, :30]))
    monkeypatch.undo()
    assert run("verify", tmp_path / "photo.fic", "--model", model_file, "--device", "cpu") == 0
    captured = capsys.readouterr()
    assert "photo.fic: note: written on cuda of the writer" in captured.err
    assert "Warning" not in captured.err
