"""The model: what a decoded pixel costs, how far the transforms see, and releases that are what they say they are."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from made_releases import limited, newest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fastcodec.codec import Codec
from fastcodec.constants import LATENT_STRIDE
from fastcodec.errors import FastcodecError, ModelMismatchError, UnavailableError, UnsupportedError
from fastcodec.geometry import ANALYSIS_HALO, SYNTHESIS_HALO
from fastcodec.kernels.integer_layer import exact_float32
from fastcodec.models.swift import export
from fastcodec.models.swift import release as released
from fastcodec.models.swift.bounds import LARGEST_FEATURE, feature_bounds
from fastcodec.models.swift.network import Block, QualityTable, Swift, SwiftConfig, gaussian_bits
from fastcodec.models.swift.warm_start import regroup

LARGEST_DECODE = 25_000  # multiply-accumulates a pixel


@pytest.fixture(scope="module")
def model() -> released.Model:
    return released.load("swift")


# ---- cost


def macs_of_synthesis(model: released.Model, side: int) -> int:
    """g_s on side x side latents: every convolution's outputs times what each of them sums."""
    total = 0

    def count(module: nn.Module, _, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    weighted = [m for m in model.g_s.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)]
    # Whatever else held a matrix of weights would go uncounted.
    others = [m for m in model.g_s.modules() if list(m.parameters(recurse=False)) and m not in weighted]
    assert all(isinstance(m, QualityTable) for m in others)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in weighted)
    hooks = [m.register_forward_hook(count) for m in weighted]
    try:
        with torch.inference_mode():
            model.g_s(torch.zeros(1, model.config.latents, side, side), torch.tensor([0.5]))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def macs_of_the_entropy_side(model: released.Model, side: int, monkeypatch) -> int:
    """Hyper-synthesis, context and parameter network on side x side latents: rows times the weights of each layer."""
    total, inner = 0, model.entropy._run

    def counting(name: str, x: torch.Tensor, row=None) -> torch.Tensor:
        nonlocal total
        total += x[..., 0].numel() * model.entropy.layers[name].weight.numel()
        return inner(name, x, row)

    monkeypatch.setattr(model.entropy, "_run", counting)
    entropy, config = model.entropy, model.config
    with exact_float32():
        z = torch.zeros(1, side // 4, side // 4, config.hyper_latents, dtype=torch.int16)
        psi_anchors, psi_non_anchors = entropy.hyper_synthesis(z, side, side)
        latents = torch.zeros(1, side * side // 2, config.latents, dtype=torch.int32)
        for group, own in enumerate(entropy.groups):
            before = latents[..., : own.start] if own.start else None
            entropy.anchor_parameters(psi_anchors, 50, group, before)
            entropy.non_anchor_parameters(psi_non_anchors, latents[..., own], (side, side), 50, group, before)
    return total


def test_a_pixel_is_decoded_with_less_than_25_kmac(model, monkeypatch):
    side = 16
    pixels = (side * LATENT_STRIDE) ** 2
    synthesis = macs_of_synthesis(model, side) / pixels
    entropy = macs_of_the_entropy_side(model, side, monkeypatch) / pixels
    print(f"synthesis {synthesis:.0f}, entropy side {entropy:.0f} MAC a pixel")
    assert synthesis + entropy < LARGEST_DECODE
    # Counted and not missed: the largest layer of each side alone, by hand.
    config = model.config
    assert synthesis > 4 * config.features * config.latents / LATENT_STRIDE**2
    contexts = sum(12 * (own.stop - own.start) + 2 * own.start for own in config.group_channels)
    assert entropy > contexts * config.context_features / 2 / LATENT_STRIDE**2


def test_entropy_side_channels_are_powers_of_two_or_sums_of_two(model):
    before = {f"g_cm.{number}": own.start for number, own in enumerate(model.entropy.groups)}
    for name, layer in model.entropy.layers.items():
        outputs, inputs = layer.weight.shape
        inputs -= before.get(name, 0)
        taps = 12 if name.startswith("g_cm") else {"h_s.head": 9, "h_s.middle": 9, "h_s.tail": 9}.get(name, 1)
        assert inputs % taps == 0
        for channels in (outputs, inputs // taps):
            assert channels.bit_count() <= 2, f"{name}: {channels} channels"


# ---- reach


def reach(function, side: int, channels: int, scale: int) -> int:
    """How many positions away a change of the input still changes the output, the output being `scale` times as fine
    (scale >= 1) or as coarse as the input."""
    torch.manual_seed(0)
    x = torch.randn(1, channels, side, side, dtype=torch.float64)
    changed = x.clone()
    middle = side // 2
    changed[:, :, middle, middle] += 1.0
    with torch.inference_mode():
        difference = (function(changed) - function(x)).abs().amax((0, 1)) > 0
    touched = difference.nonzero()
    return int(max(middle * scale - touched.min(), touched.max() - (middle * scale + scale - 1)))


def random_transform(kind: type[nn.Module]) -> nn.Module:
    """Weights that hide nothing: a trained layer of near-zeros would make the reach look smaller."""
    torch.manual_seed(1)
    module = kind(SwiftConfig(features=16, latents=16)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def test_the_halo_of_the_synthesis_covers_what_it_sees():
    g_s = random_transform(released.Synthesis)
    pixels = reach(lambda y: g_s(y, torch.tensor([0.3])), 24, 16, LATENT_STRIDE)
    assert (SYNTHESIS_HALO - 1) * LATENT_STRIDE < pixels <= SYNTHESIS_HALO * LATENT_STRIDE


def test_the_halo_of_the_analysis_covers_what_it_sees():
    g_a = random_transform(released.Analysis)
    torch.manual_seed(0)
    side, middle = 24, 12
    x = torch.rand(1, 3, side * LATENT_STRIDE, side * LATENT_STRIDE, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, middle * 16 : (middle + 1) * 16, middle * 16 : (middle + 1) * 16] += 0.3
    with torch.inference_mode():
        difference = (g_a(changed, torch.tensor([0.3])) - g_a(x, torch.tensor([0.3]))).abs().amax((0, 1)) > 0
    touched = difference.nonzero()
    assert max(middle - int(touched.min()), int(touched.max()) - middle) == ANALYSIS_HALO


# ---- training's arithmetic


def test_qualities_between_two_points_are_interpolated():
    table = QualityTable(3, 2)
    with torch.no_grad():
        table.points.copy_(torch.tensor([[0.0, 1], [2, 1], [2, 5]]))
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, -3, 7])
    expected = [[0, 1], [1, 1], [2, 1], [2, 3], [2, 5], [0, 1], [2, 5]]
    assert torch.equal(table(t), torch.tensor(expected, dtype=torch.float32))


def test_gaussian_bits_are_the_code_length_of_a_rounded_gaussian():
    """Summed over all integers the probabilities are 1, and an escape's cost is bounded."""
    residual = torch.arange(-4000.0, 4001.0, dtype=torch.float64)[:, None]
    index = torch.arange(0.0, 64.0, dtype=torch.float64)[None, :]
    total = torch.exp2(-gaussian_bits(residual, index.expand(len(residual), -1))).sum(0)
    assert (total - 1).abs().max() < 1e-4
    assert float(gaussian_bits(torch.tensor(1e6), torch.tensor(0.0))) == pytest.approx(29.9, abs=0.1)


def test_a_training_pass_has_gradients_everywhere():
    torch.manual_seed(0)
    model = Swift(
        SwiftConfig(features=16, latents=16, hyper_latents=8, hyper_features=16, context_features=16, hidden=16)
    )
    for quantise in (False, True):
        model.set_quantise(quantise)
        model.zero_grad()
        out = model(torch.rand(2, 3, 64, 128), torch.tensor([0.2, 0.9]))
        assert out["x_hat"].shape == (2, 3, 64, 128)
        assert out["y_bits"].shape == out["z_bits"].shape == (2,)
        (out["x_hat"].square().mean() + (out["y_bits"] + out["z_bits"]).mean() / 8192).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert not without


# ---- releases


@pytest.fixture
def shelf(tmp_path, monkeypatch, model):
    """A folder of releases of our own, with the shipped one in it."""
    digest = model.identity.hex()
    shutil.copy(released.weights_folder() / f"swift-{digest}.safetensors", tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"swift": [digest]}))
    monkeypatch.setattr(released, "weights_folder", lambda: tmp_path)
    released.load.cache_clear()
    yield tmp_path
    released.load.cache_clear()


def stored(model: released.Model) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = released.weights_folder() / f"swift-{model.identity.hex()}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def test_the_identity_covers_every_tensor_that_decides_a_pixel(model):
    tensors, metadata = stored(model)
    original = released.identity(tensors, metadata["config"])
    assert original == model.identity.hex()
    encoder_only = ("g_a.", "h_a.", "gain", "prior.")
    for name, tensor in tensors.items():
        other = tensor.clone()
        other.view(torch.uint8).flatten()[-1] ^= 1
        changed = released.identity(tensors | {name: other}, metadata["config"])
        assert (changed == original) == name.startswith(encoder_only), name
    assert released.identity(tensors, metadata["config"].replace("256", "255", 1)) != original
    assert {"inverse_gain", "prior_tables", "entropy.context_shift"} <= set(tensors)


def test_every_release_of_the_index_loads_and_is_what_it_says():
    for digest in released.available("swift"):
        assert released.load("swift", bytes.fromhex(digest)).identity.hex() == digest


def test_unknown_names_and_identities_are_refused_by_name():
    with pytest.raises(ModelMismatchError, match=r"no model named 'heron'; this installation has swift"):
        released.load("heron")
    with pytest.raises(ModelMismatchError, match=r"written with model 00112233aabb.*" + released.available()[0]):
        released.load("swift", bytes.fromhex("00112233aabb"))


def test_a_damaged_release_is_refused(shelf, model):
    path = next(shelf.glob("*.safetensors"))
    data = path.read_bytes()
    tensors, metadata = stored(model)
    # One bit of the synthesis: still a model, but another one.
    other = tensors["g_s.tail.bias"].clone()
    other.view(torch.int16)[3] ^= 1
    save_file(tensors | {"g_s.tail.bias": other}, path, metadata=metadata)
    with pytest.raises(ModelMismatchError, match=path.name):
        Codec.load("swift")
    for damaged in (data[:-1000], data[:100], b"", bytes(5000)):
        path.write_bytes(damaged)
        with pytest.raises(ModelMismatchError, match=path.name):
            Codec.load("swift")
    path.unlink()
    with pytest.raises(ModelMismatchError, match=path.name):
        Codec.load("swift")


@pytest.mark.parametrize(
    "name, change",
    [
        ("entropy.g_cm.weight", None),
        ("g_s.tail.weight", None),
        ("prior_tables", None),
        ("prior_tables", lambda t: t[:-3]),
        ("prior_tables", lambda t: torch.zeros_like(t)),
        ("g_s.tail.weight", lambda t: t[:5]),
        ("entropy.g_cm.shift", lambda t: torch.zeros_like(t)),
    ],
)
def test_a_release_with_other_contents_is_a_typed_error(name, change, shelf, model):
    tensors, metadata = stored(model)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous()
    path = shelf / "other.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(FastcodecError):
        released.read_model(path)


@pytest.mark.parametrize("metadata", [None, {}, {"config": "{"}, {"config": "[]"}, {"config": '{"wings": 2}'}])
def test_a_file_that_is_not_a_release_is_a_typed_error(metadata, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(ModelMismatchError, match=r"other\.safetensors"):
        released.read_model(path)


def test_the_gains_rise_with_quality(model):
    assert model.gain.shape == model.inverse_gain.shape == (100, model.config.latents)
    # Channels that carry nothing at coarse qualities may drift there, so the range counts and not every step.
    assert (model.gain[-1] / model.gain[0]).log().mean() > 1
    assert (model.inverse_gain[-1] / model.inverse_gain[0]).log().mean() < -1


def test_devices():
    for device in ("auto", "cpu"):
        codec = Codec.load("swift", device=device)
        assert codec.model.name == "swift"
        assert codec.device.type == ("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match=r"device 'gpu': use 'auto' \(or None\), 'cpu', 'cuda'"):
        Codec.load("swift", device="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    for device in ("cuda", "cuda:1"):
        with pytest.raises(UnavailableError, match="PyTorch finds no CUDA device"):
            Codec.load("swift", device=device)


def test_a_release_can_be_trained_on(tmp_path):
    """`restore` undoes `export`: the same int8 weights and shifts, biases and gains to their rounding. Tables are not a
    part of what is trained: they are counted anew."""
    path = newest()
    again = tmp_path / "again.safetensors"
    export.export(export.restore(path), again)
    first, second = load_file(path), load_file(again)
    first.pop("latent_tables", None)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if name.endswith(".bias") and name.startswith("entropy."):
            assert (tensor - second[name]).abs().max() <= 1, name
        elif name in ("gain", "inverse_gain"):
            torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=0)
        else:
            assert torch.equal(second[name], tensor), name


# ---- bounds of features


@pytest.mark.parametrize("factor", [1, 50])
def test_no_feature_exceeds_its_bound(factor: float):
    """Whatever the picture or the latents. factor: of the gates' weights and of those behind them."""
    model = limited(64.0)
    bounds = feature_bounds(model, model.gain, model.inverse_gain)
    largest: dict[str, float] = {}

    def record(name: str, values: torch.Tensor) -> None:
        assert values.isfinite().all(), name
        largest[name] = max(largest.get(name, 0.0), float(values.abs().max()))

    for part in ("g_a", "h_a", "g_s"):
        for name, module in getattr(model, part).named_modules(prefix=part):
            if isinstance(module, Block):
                module.gate.weight.mul_(factor)
                module.merge.weight.mul_(factor)
                # What the gate reads is the sum that `project` stands for.
                module.gate.register_forward_pre_hook(lambda _, x, name=name: record(f"{name}.project", x[0]))
            if name in bounds and not name.endswith((".project", ".up")):  # g_s.up's values are not clamped yet
                module.register_forward_hook(lambda _, x, out, name=name: record(name, out))
    generator = torch.Generator().manual_seed(0)
    signs = lambda *shape: torch.randint(0, 2, shape, generator=generator).float()  # noqa: E731
    pictures = [signs(1, 3, 64, 64), signs(1, 3, 8, 8).repeat(1, 1, 8, 8), torch.ones(1, 3, 64, 64)]
    pictures.append((torch.arange(64) % 2 == torch.arange(64)[:, None] % 2).float().expand(1, 3, -1, -1))
    # The picture that the head's first channel answers most to, all over it.
    pictures.append(F.pixel_shuffle(model.g_a.head.weight[:1].sign().div(2).add(0.5).expand(-1, -1, 8, 8), 8))
    with torch.inference_mode():
        for quality in (1, 50, 100):
            t = torch.tensor([(quality - 1) / 99])
            for picture in pictures:
                y = model.g_a(picture, t) * model.gain[quality - 1, :, None, None]
                assert model.h_a(y, t).isfinite().all()
            for magnitude in (1.0, 64.0, 65535.0):
                assert model.g_s((signs(1, model.config.latents, 4, 4) * 2 - 1) * magnitude, t).isfinite().all()
    assert largest.keys() == bounds.keys() - {"latents", "g_s.up"}
    for name, value in largest.items():
        assert value <= bounds[name] * (1 + 1e-5), name
    assert largest["g_s.head"] == bounds["g_s.head"] == 64


def test_a_model_whose_features_may_leave_half_precision_is_not_released(tmp_path):
    config = SwiftConfig(
        features=16, latents=16, hyper_latents=8, hyper_features=16, context_features=16, hidden=16, blocks=2
    )
    path = tmp_path / "model.safetensors"
    for layer, weight in (("g_s.blocks.1.project", 1e4), ("h_a.down2", 3.0), ("g_a.down", math.nan)):
        torch.manual_seed(0)
        model = Swift(config)
        with torch.no_grad():
            model.get_submodule(layer).weight.fill_(weight)
        with pytest.raises(UnsupportedError, match=rf"^{layer} can reach"):
            export.export(model, path)
    with pytest.raises(UnsupportedError, match="limit of features is None"):
        export.export(Swift(replace(config, limit=None)), path)
    assert not path.exists()
    export.export(Swift(config), path)
    model = released.read_model(path)
    assert max(feature_bounds(model, model.gain, model.inverse_gain).values()) < LARGEST_FEATURE


# ---- groups of channels


def test_regrouped_transforms_are_the_same_with_latents_in_another_order():
    """One group in another order codes the same: means, scale indexes and pixels, up to sums in another order."""
    torch.manual_seed(0)
    config = SwiftConfig(features=16, latents=24, hyper_latents=8, hyper_features=16, context_features=16, hidden=16)
    old = Swift(config, torch.randint(1, 6, (24,), dtype=torch.int32))
    with torch.no_grad():
        for name, parameter in old.named_parameters():
            if name.endswith(("bias", "points", "project.weight", "merge.weight")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    new = regroup(old, (24,), images)
    x, t = images.float() / 255, torch.tensor([0.0, 0.3, 0.7, 1.0])
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        y, permuted = old.g_a(x, t), new.g_a(x, t)
        order = torch.cdist(permuted.transpose(0, 1).flatten(1), y.transpose(0, 1).flatten(1)).argmin(1)
        assert order.unique().numel() == 24
        assert order.tolist() != list(range(24))
        close(permuted, y[:, order])
        close(new.h_a(permuted, t), old.h_a(y, t))
        close(new.g_s(permuted, t), old.g_s(y, t))
        close(new.log_inverse_gain(t), old.log_inverse_gain(t)[:, order])
        psi = torch.randn(4, 8, 16)
        anchors = 20 * torch.randn(4, 8, 24)
        phi = old.groups[0].context_at_non_anchors(anchors, anchors[..., :0], 4, 4)
        of_order = new.groups[0].context_at_non_anchors(anchors[..., order], anchors[..., :0], 4, 4)
        close(of_order, phi)
        for new_head, old_head in zip(new.groups[0](psi, of_order, t), old.groups[0](psi, phi, t), strict=True):
            close(new_head, old_head[..., order])


def test_groups_begin_with_their_part_of_the_one_group():
    torch.manual_seed(0)
    config = SwiftConfig(features=16, latents=24, hyper_latents=8, hyper_features=16, context_features=16, hidden=16)
    old = Swift(config, torch.randint(1, 6, (24,), dtype=torch.int32))
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    one, two = regroup(old, (24,), images), regroup(old, (8, 16), images)
    assert [len(group.means.bias) for group in two.groups] == [8, 16]
    psi, t = torch.randn(4, 8, 16), torch.rand(4)
    anchors, non_anchors = 20 * torch.randn(4, 8, 24), 20 * torch.randn(4, 8, 24)
    with torch.no_grad():
        alone = anchors.clone()
        alone[..., :8] = 0  # what the second group's convolution does not read of the first's anchors
        for group, channels, seen in zip(two.groups, two.config.group_channels, (None, alone), strict=True):
            phi = group.context_at_non_anchors(anchors[..., channels], non_anchors[..., : channels.start], 4, 4)
            if seen is not None:
                torch.testing.assert_close(phi, one.groups[0].context_at_non_anchors(seen, seen[..., :0], 4, 4))
            for part, whole in zip(group(psi, phi, t), one.groups[0](psi, phi, t), strict=True):
                torch.testing.assert_close(part, whole[..., channels])
        assert two.groups[0].context_at_anchors(anchors[..., :0]) is None
        assert not two.groups[1].context_at_anchors(anchors[..., :8]).any()


def test_groups_inside_a_group_begin_with_their_part_of_it():
    """Of a model of several: what they read of the groups before that one too. A group across two begins at random."""
    torch.manual_seed(0)
    config = SwiftConfig(
        features=16, latents=24, hyper_latents=8, hyper_features=16, context_features=16, hidden=16, groups=(8, 16)
    )
    old = Swift(config, torch.randint(1, 6, (24,), dtype=torch.int32))
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    same, new, across = (regroup(old, groups, images) for groups in ((8, 16), (8, 12, 4), (4, 8, 12)))
    for key, value in old.state_dict().items():
        assert torch.equal(same.state_dict()[key], value), key
    torch.testing.assert_close(new.groups[0].state_dict(), old.groups[0].state_dict())
    psi, t = torch.randn(4, 8, 16), torch.rand(4)
    anchors, non_anchors = 20 * torch.randn(4, 8, 24), 20 * torch.randn(4, 8, 24)
    with torch.no_grad():
        for number, own in ((1, slice(8, 20)), (2, slice(20, 24))):
            group, channels = new.groups[number], new.config.group_channels[number]
            assert channels == own
            seen = torch.zeros_like(anchors[..., 8:])  # the old group's convolution reads no more than these channels
            seen[..., own.start - 8 : own.stop - 8] = anchors[..., own]
            phi = group.context_at_non_anchors(anchors[..., own], non_anchors[..., : own.start], 4, 4)
            expected = old.groups[1].context_at_non_anchors(seen, non_anchors[..., :8], 4, 4)
            torch.testing.assert_close(phi, expected)
            at_anchors = group.context_at_anchors(anchors[..., : own.start])
            torch.testing.assert_close(at_anchors, old.groups[1].context_at_anchors(anchors[..., :8]))
            assert at_anchors.any()
            for part, whole in zip(group(psi, phi, t), old.groups[1](psi, phi, t), strict=True):
                torch.testing.assert_close(part, whole[..., own.start - 8 : own.stop - 8])
        y = new.g_a(images.float() / 255, t)
        torch.testing.assert_close(y, old.g_a(images.float() / 255, t))
    assert torch.equal(across.groups[0].means.weight, old.groups[0].means.weight[:4])
    assert torch.equal(across.groups[2].means.weight, old.groups[1].means.weight[4:])
    for old_group in old.groups:
        assert not torch.equal(across.groups[1].second.weight, old_group.second.weight)
    assert torch.equal(across.groups[1].context_shift, old.groups[1].context_shift[:12])


def test_groups_are_a_partition():
    with pytest.raises(ValueError, match="not a partition of 256 latents"):
        Swift(SwiftConfig(groups=(64, 64)))
