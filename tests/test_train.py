"""The trainer: crops, graphics among them, steps, a stop and a resumption, and weights that the codec then runs."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcodec import crops, graphics, metrics
from fastcodec.codec import Codec
from fastcodec.crops import VALIDATION_EVERY, VALIDATION_GRAPHICS, VALIDATION_LIST, CropSource, ResidentCrops
from fastcodec.errors import ImageError, ModelMismatchError
from fastcodec.kernels.processor import bfloat16_is_native
from fastcodec.models import tasks, zoo
from fastcodec.models.swift import export
from fastcodec.models.swift import publish as publishing
from fastcodec.models.swift import release as released
from fastcodec.train import Trainer, TrainingConfig, add_arguments

IMAGES = 48
CROP = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photographs) -> Path:
    """48 small images, some in a folder within, some too small, and a file that is no image."""
    root = tmp_path_factory.mktemp("images")
    (root / "more").mkdir()
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        image = list(photographs.values())[i % 4]
        top, left = random.integers(image.shape[0] - 80), random.integers(image.shape[1] - 96)
        part = Image.fromarray(image[top : top + 80, left : left + 96])
        part.save(root / ("more" if i % 2 else "") / f"{i:02}.png")
    Image.fromarray(image[: CROP - 1, :200]).save(root / "low.png")
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def config(folder, tmp_path) -> TrainingConfig:
    return TrainingConfig(
        data=folder,
        run=tmp_path / "run",
        minutes=60,
        batch=2,
        crop=CROP,
        warmup_steps=4,
        log_steps=1,
        quantise_from=0.5,
    )


@pytest.fixture
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def log_of(config: TrainingConfig) -> list[dict]:
    return [json.loads(line) for line in (config.run / "log.jsonl").read_text().splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- crops


def test_crops_come_from_the_images_that_are_large_enough(folder):
    source = CropSource(folder, CROP, seed=1)
    assert len(source.validation) == -(-IMAGES // VALIDATION_EVERY)
    assert len(source.images) + len(source.validation) == IMAGES
    batch = source.batch(5)
    assert (batch.shape, batch.dtype) == ((5, 3, CROP, CROP), torch.uint8)
    assert source.batch(2, 32).shape == (2, 3, 32, 32)
    assert source.validation_batch(CROP).shape == (2, 3, CROP, CROP)


def test_crops_follow_the_seed_and_validation_is_held_out(folder):
    first, again, other = (CropSource(folder, CROP, seed) for seed in (1, 1, 2))
    assert torch.equal(first.batch(4), again.batch(4))
    assert not torch.equal(first.batch(4), other.batch(4))
    assert torch.equal(first.validation_batch(CROP), other.validation_batch(CROP))
    held_out = {image.tobytes() for image in first.validation}
    assert not held_out & {image.tobytes() for image in first.images}


def test_a_crop_is_a_part_of_an_image_turned_or_mirrored(folder):
    source = CropSource(folder, CROP, seed=3)
    corners = set()
    for image in source.images:
        for part in (image, image[:, ::-1]):
            windows = np.lib.stride_tricks.sliding_window_view(part[..., 0], (4, 4))
            corners |= {w.tobytes() for w in windows.reshape(-1, 4, 4)}
            corners |= {np.ascontiguousarray(w.T).tobytes() for w in windows.reshape(-1, 4, 4)}
    for crop in source.batch(20).numpy():
        assert np.ascontiguousarray(crop[0, :4, :4]).tobytes() in corners


def test_too_few_images_are_refused_with_their_number(tmp_path):
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"1 images of at least 64 pixels; need 40"):
        CropSource(tmp_path, CROP, seed=1)


def test_a_list_in_the_folder_names_what_is_held_out(folder, tmp_path):
    for path in folder.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in (folder / "more").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / VALIDATION_LIST).write_text("07.png\n00.png\n")
    source = CropSource(tmp_path, CROP, seed=1)
    pixels = [np.asarray(Image.open(tmp_path / name)) for name in ("00.png", "07.png")]
    assert all(np.array_equal(a, b) for a, b in zip(source.validation, pixels, strict=True))
    assert len(source.images) == IMAGES - 2
    for names, message in (("low.png\n", r"low\.png is not an image that is large enough"), ("\n", "names no image")):
        (tmp_path / VALIDATION_LIST).write_text(names)
        with pytest.raises(ImageError, match=rf"validation\.txt: .*{message}"):
            CropSource(tmp_path, CROP, seed=1)


# ---- crops on the training device


def corners_of(images: list[np.ndarray]) -> set[bytes]:
    """The upper left 4x4 pixels of every crop that `images` have, mirrored and turned too."""
    found = set()
    for image in images:
        for part in (image, image[:, ::-1]):
            windows = np.lib.stride_tricks.sliding_window_view(part, (4, 4), (0, 1)).transpose(0, 1, 3, 4, 2)
            found |= {w.tobytes() for w in windows.reshape(-1, 4, 4, 3)}
            found |= {np.ascontiguousarray(w.transpose(1, 0, 2)).tobytes() for w in windows.reshape(-1, 4, 4, 3)}
    return found


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_resident_crops_are_parts_of_the_images_turned_or_mirrored(folder, share):
    source = CropSource(folder, CROP, seed=3, graphics=share)
    source.images = [image[: 80 - 3 * (i % 4), : 96 - 5 * (i % 3)] for i, image in enumerate(source.images)]
    resident = ResidentCrops(source, torch.device("cpu"))
    photographs, drawn = corners_of(source.images), corners_of(source.drawn)
    torch.manual_seed(0)
    crops = resident.batch(400, CROP)
    assert (crops.shape, crops.dtype) == ((400, 3, CROP, CROP), torch.float32)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    crops = (crops * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    kinds = [(c[:4, :4].tobytes() in photographs, c[:4, :4].tobytes() in drawn) for c in crops]
    assert all(photograph or graphic for photograph, graphic in kinds)
    assert sum(not photograph for photograph, _ in kinds) <= 400 * share
    if share:
        assert abs(sum(graphic for _, graphic in kinds) - 400 * share) <= 45


def test_resident_crops_cut_every_place_and_turn_as_often_as_on_the_host(folder):
    """One image whose red is its row and whose green its column: what a crop shows says how it was cut."""
    source = CropSource(folder, CROP, seed=3)
    rows, columns = np.mgrid[: CROP + 3, : CROP + 5].astype(np.uint8)
    source.images = [np.stack([rows, columns, columns], 2)]
    resident = ResidentCrops(source, torch.device("cpu"))
    torch.manual_seed(1)
    seen = {"host": set(), "device": set()}
    counts = {"host": np.zeros(2), "device": np.zeros(2)}
    for name in seen:
        many = (source.batch(600) if name == "host" else (resident.batch(600, CROP) * 255).round()).long()
        for crop in many:
            red, green = crop[0], crop[1]
            turned = bool(red[0, 1] != red[0, 0])
            red, green = (red.T, green.T) if turned else (red, green)
            mirrored = bool(green[0, 1] < green[0, 0])
            green = green.flip(1) if mirrored else green
            assert torch.equal(red - red[0, 0], torch.arange(CROP)[:, None].expand(CROP, CROP))
            assert torch.equal(green - green[0, 0], torch.arange(CROP)[None].expand(CROP, CROP))
            seen[name].add((int(red[0, 0]), int(green[0, 0])))
            counts[name] += turned, mirrored
    assert seen["host"] == seen["device"] == {(top, left) for top in range(4) for left in range(6)}
    for drawn in counts.values():
        assert np.all(np.abs(drawn / 600 - [0.25, 0.5]) < 0.08)


def test_other_processes_draw_and_the_device_gets_it(folder, monkeypatch):
    monkeypatch.setattr(crops, "drawing_processes", lambda: 1)
    with crops.drawing_pool() as pool:
        source = CropSource(folder, CROP, seed=3, graphics=0.5, pool=pool)
        assert len(source.drawn) == 32
        assert {picture.shape for picture in source.drawn} == {(CROP, CROP, 3)}
        assert len({picture.tobytes() for picture in source.drawn}) > 20
        resident = ResidentCrops(source, torch.device("cpu"))
        before = resident.pixels.clone()
        photographs = int(resident.starts[resident.photographs])
        for _ in range(200):
            resident.redraw(pool)
            time.sleep(0.02)
            if not torch.equal(resident.pixels, before):
                break
    changed = (resident.pixels != before).any(1).nonzero()
    assert len(changed)
    assert int(changed.min()) >= photographs


# ---- graphics


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_the_share_of_graphics_is_what_was_asked(folder, share, monkeypatch):
    """Of 800 crops, within four standard deviations. Drawn pictures are of one colour here, which no photograph has."""
    colour = np.array([255, 0, 254], np.uint8)
    monkeypatch.setattr(graphics, "draw", lambda random, height, width, **_: np.tile(colour, (height, width, 1)))
    source = CropSource(folder, CROP, seed=5, graphics=share)
    crops = torch.cat([source.batch(8) for _ in range(100)])
    drawn = (crops == torch.from_numpy(colour)[:, None, None]).flatten(1).all(1).sum().item()
    assert abs(drawn - 800 * share) <= 4 * (800 * share * (1 - share)) ** 0.5


def test_each_batch_draws_one_picture_anew_over_a_training_photograph(folder, monkeypatch):
    draw, photographs = graphics.draw, []

    def watched(random, height, width, *, photograph, **options):
        photographs.append(photograph)
        return draw(random, height, width, photograph=photograph, **options)

    monkeypatch.setattr(graphics, "draw", watched)
    source = CropSource(folder, CROP, seed=1, graphics=0.5)
    before = list(source.drawn)
    assert all(min(picture.shape[:2]) >= CROP for picture in before)
    source.batch(4)
    assert sum(a is not b for a, b in zip(before, source.drawn, strict=True)) == 1
    assert len(photographs) == len(before) + 1
    for photograph in photographs:
        assert not any(np.shares_memory(photograph, image) for image in source.validation)
        assert any(np.shares_memory(photograph, image) for image in source.images)


def test_graphics_follow_the_seed(folder):
    first, again, other = (CropSource(folder, CROP, seed, 1.0).batch(4) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_validation_is_the_same_for_every_seed_and_share(folder, monkeypatch):
    plain, drawn = CropSource(folder, CROP, seed=1), CropSource(folder, CROP, seed=2, graphics=0.5)
    drawn.batch(2)
    assert torch.equal(plain.validation_batch(CROP), drawn.validation_batch(CROP))
    for image, crop in zip(plain.validation, plain.validation_batch(CROP).numpy(), strict=True):
        assert np.array_equal(crop.transpose(1, 2, 0), image[8 : 8 + CROP, 16 : 16 + CROP])
    held_out = drawn.validation_graphics(CROP)
    assert torch.equal(plain.validation_graphics(CROP), held_out)
    assert held_out.shape == (VALIDATION_GRAPHICS, 3, CROP, CROP)

    calls, draw = [], graphics.draw
    monkeypatch.setattr(graphics, "draw", lambda *a, **options: calls.append(options) or draw(*a, **options))
    drawn.validation_graphics(CROP)
    assert {call["kind"] for call in calls} == set(graphics.KINDS)
    assert {call["fonts"] for call in calls} == {graphics.PILLOW_FONTS}
    for call in calls:
        assert any(np.shares_memory(call["photograph"], image) for image in drawn.validation)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_graphics_out_of_range_is_refused(folder, share):
    with pytest.raises(ValueError, match=r"graphics .* 0 to 1"):
        CropSource(folder, CROP, seed=1, graphics=share)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["images", "--run", "run", f"--graphics={share}"])
    assert parser.parse_args(["images", "--run", "run", "--graphics", "0"]).graphics == 0


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_a_cycle_has_a_length(minutes, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["images", "--run", "run", f"--minutes={minutes}"])
    assert "--minutes" in capsys.readouterr().err
    assert parser.parse_args(["images", "--run", "run", "--minutes", "0.5"]).minutes == 0.5


# ---- steps


def test_the_rate_warms_up_stays_and_falls(config):
    trainer = Trainer.__new__(Trainer)
    trainer.config, trainer.cycle_step = config, 0
    assert trainer.rate_factor(0.0) == 0.25
    trainer.cycle_step = 1000
    assert trainer.rate_factor(0.0) == trainer.rate_factor(config.decay_from) == 1.0
    falling = [trainer.rate_factor(p) for p in np.linspace(config.decay_from, 1, 20)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(0.01)


def test_three_steps_then_a_stop_then_a_resumption(config):
    trainer = Trainer(config)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for progress in (0.0, 0.2, 0.9):
        parts = trainer.train_step(progress)
        assert all(np.isfinite(value) for value in parts.values())
        assert parts["bpp"] > 0
        assert parts["psnr"] > 15  # the warm start is a transform codec already
    assert (trainer.step, trainer.cycle_step) == (3, 3)
    assert trainer.model.groups[0].first.quantise  # past quantise_from
    still = [name for name, value in trainer.model.named_parameters() if torch.equal(value, start[name])]
    assert set(still) <= {"h_s.head.weight"}  # its input, the hyper latents, may still round to zero everywhere
    assert not same(trainer.average.state_dict(), trainer.model.state_dict())
    validation = trainer.validate()
    assert np.isfinite(validation["validation_loss"])
    assert validation["bpp"] == sorted(validation["bpp"])
    trainer.cycle_start -= 600
    trainer.save()
    assert [path.name for path in config.run.iterdir()] == ["last.pt"]

    resumed = Trainer(config)
    assert (resumed.step, resumed.cycle_step) == (3, 3)
    assert resumed.progress() == pytest.approx(trainer.progress(), abs=0.02)
    assert resumed.progress() > 1 / 6
    assert resumed.rate_factor(0.0) == trainer.rate_factor(0.0) == 1.0
    assert same(resumed.model.state_dict(), trainer.model.state_dict())
    assert same(resumed.average.state_dict(), trainer.average.state_dict())
    moments = [s["exp_avg"] for s in resumed.optimiser.state_dict()["state"].values()]
    assert any(moment.abs().max() > 0 for moment in moments)
    resumed.train_step(0.3)
    assert resumed.step == 4

    trainer.save(finished=True)  # a finished run: its weights start another cycle
    another = Trainer(config)
    assert (another.step, another.cycle_step) == (3, 0)
    assert another.progress() < 0.02
    assert not another.optimiser.state_dict()["state"]
    assert same(another.model.state_dict(), trainer.model.state_dict())


def test_a_step_that_explodes_leaves_the_weights_alone(config):
    trainer = Trainer(config)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for parameter in trainer.model.prior.parameters():
        parameter.register_hook(lambda gradient: gradient * float("nan"))
    assert trainer.train_step(0.0)["skipped"] == 1.0
    assert trainer.step == 0
    assert same(trainer.model.state_dict(), before)


def test_a_terminated_run_saves_and_resumes(config, signals, capsys):
    trainer = Trainer(config)
    step = trainer.train_step

    def step_then_stop(progress: float) -> dict[str, float]:
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(progress)

    trainer.train_step = step_then_stop
    trainer.run()
    assert trainer.step == 2  # the step under way is finished
    state = torch.load(config.run / "last.pt", weights_only=True)
    assert state["finished"] is False
    assert state["step"] == trainer.step
    events = log_of(config)
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "stopped"
    assert events[-1]["step"] == trainer.step
    assert [e["step"] for e in events if "loss" in e] == list(range(1, trainer.step + 1))
    resumed = Trainer(config)
    assert (resumed.step, resumed.cycle_step) == (trainer.step, trainer.step)


def test_a_run_ends_with_its_cycle(config, signals, capsys):
    config.minutes = 1 / 60
    trainer = Trainer(config)
    trainer.run()
    assert torch.load(config.run / "last.pt", weights_only=True)["finished"] is True
    last = log_of(config)[-1]
    assert last["event"] == "finished"
    assert np.isfinite([last["validation_loss"], last["graphics_loss"]]).all()
    assert last["validation_loss"] != last["graphics_loss"]
    for name in ("bpp", "psnr"):
        assert len(last[f"graphics_{name}"]) == len(last[name]) == len(trainer.task.points)


# ---- the whole step as a graph, but for the capture


class Replayed:
    """What a captured graph does, by doing it again."""

    def __init__(self, step):
        self.replay = step


@pytest.fixture
def on_the_device(config, monkeypatch):
    """Makes trainers that run a GPU's path on the CPU."""

    def make(**options) -> Trainer:
        trainer = Trainer(dataclasses.replace(config, graphics=0.0, **options))
        trainer._resident = ResidentCrops(trainer.source, trainer.device)
        trainer._capture = Replayed
        torch.manual_seed(5)
        return trainer

    return make


def test_graph_steps_are_the_steps_launched_one_by_one(on_the_device, tmp_path, monkeypatch):
    """Across the change to integers and that of the crop: equal weights, averages and means."""
    monkeypatch.setattr(tasks.SwiftTask, "autocast", False)
    options = {"quantise_from": 0.4, "late_crop": 128, "late_from": 0.7, "batch": 4}
    eager, graphed = (on_the_device(run=tmp_path / name, crop=64, **options) for name in ("eager", "graphed"))
    parts, shapes = [], []
    for trainer in (eager, graphed):
        for image in range(len(trainer.source.images)):
            trainer.source.images[image] = np.tile(trainer.source.images[image], (2, 2, 1))
        trainer._resident = ResidentCrops(trainer.source, trainer.device)
        batch = trainer._resident.batch
        trainer._resident.batch = lambda n, crop, batch=batch: shapes.append((n, crop)) or batch(n, crop)
        torch.manual_seed(6)
        for progress in (0.0, 0.3, 0.5, 0.6, 0.8):
            if trainer is eager:
                parts.append(trainer.train_step(progress))
            else:
                trainer.graph_step(progress)
    assert shapes == 2 * [*[(4, 64)] * 4, (1, 128)]
    assert graphed.step == eager.step == 5
    assert same(eager.model.state_dict(), graphed.model.state_dict())
    assert same(eager.average.state_dict(), graphed.average.state_dict())
    means = graphed._take_means(5)
    assert means == pytest.approx({name: np.mean([p[name] for p in parts]) for name in parts[0]}, rel=1e-6)
    assert not graphed._totals.any()


def test_a_graph_step_that_explodes_counts_as_skipped(on_the_device):
    trainer = on_the_device()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    hooks = [p.register_hook(lambda gradient: gradient * float("nan")) for p in trainer.model.prior.parameters()]
    trainer.graph_step(0.0)
    assert same(trainer.model.state_dict(), before)
    for hook in hooks:
        hook.remove()
    trainer.graph_step(0.0)
    means = trainer._take_means(2)
    assert means["skipped"] == 0.5
    assert np.isfinite(list(means.values())).all()
    assert not same(trainer.model.state_dict(), before)


def test_a_run_by_graphs_logs_and_ends_as_any(on_the_device, signals, capsys):
    trainer = on_the_device(steps=6, log_steps=2)
    trainer.run()
    log = log_of(trainer.config)
    assert [line["step"] for line in log if "loss" in line] == [2, 4, 6]
    assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)
    assert log[-1]["event"] == "finished"
    assert released.read_model(trainer.config.run / "swift.safetensors").about["steps"] == "6"


def test_a_step_on_a_device_waits_for_nothing(monkeypatch, tmp_path):
    """Of tensors without data, on which reading a value raises; and none but of the device takes part."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            out = function(*arguments, **(options or {}))
            tensors = [t for t in tree_leaves((arguments, options, out)) if isinstance(t, torch.Tensor)]
            assert {t.device.type for t in tensors} <= {"meta"}, f"{function} leaves the device"
            return out

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    device = torch.device("meta")
    trainer = Trainer.__new__(Trainer)
    trainer.config = TrainingConfig(tmp_path, tmp_path, quantise_from=0.0, layout="nhwc")
    trainer.device, trainer.task, trainer.on_gpu, trainer.step, trainer.cycle_step = device, tasks.task(), True, 0, 0
    trainer.bfloat16 = True
    trainer.model, trainer.average = (trainer.task.blank({}).to(device) for _ in range(2))
    trainer.average.requires_grad_(False)
    trainer.optimiser = torch.optim.SGD(trainer.parameter_groups(), lr=0.1)
    trainer.optimiser.step = lambda: None  # PyTorch's own, which only a GPU has in one launch
    trainer._passes, trainer._pull = trainer._objective, torch.zeros((), device=device)
    trainer._totals = torch.zeros(6, device=device, dtype=torch.float64)
    resident = trainer._resident = ResidentCrops.__new__(ResidentCrops)
    resident.pixels = torch.empty(512 * 512, 3, dtype=torch.uint8, device=device)
    resident.photographs, resident.drawn, resident.share = 8, 2, 0.2
    resident._start = resident._height = resident._width = torch.empty(10, dtype=torch.int64, device=device)
    trainer._prepare(0.5)
    trainer._resident_step(8, 256)  # fills the caches of positions
    with Watch():
        trainer._resident_step(8, 256)


# ---- from a checkpoint to a release


def test_a_checkpoint_becomes_a_release_that_the_codec_runs(config, tmp_path, monkeypatch, photographs):
    """Three releases, one after the other: the newest encodes, the one before still decodes, the oldest is dropped."""
    shelf = tmp_path / "weights"
    monkeypatch.setattr(released, "weights_folder", lambda: shelf)
    released.load.cache_clear()
    trainer = Trainer(config)
    image = photographs["chelsea"][50:160, 100:230]
    identities, files = [], []
    for step in range(3):
        if step:
            trainer.train_step(0.9)
        trainer.save()
        identities.append(publishing.publish(config.run / "last.pt", shelf))
        released.load.cache_clear()
        codec = Codec.load("swift")
        assert codec.model.identity.hex() == identities[-1]
        assert codec.model.about["steps"] == str(step)
        files.append(codec.encode(image, quality=80))
        decoded = codec.decode(files[-1], out="numpy")
        assert -10 * np.log10(np.square((decoded.astype(float) - image) / 255).mean()) > 25
    assert len(set(identities)) == 3
    assert released.available("swift") == [identities[2], identities[1]]
    assert sorted(path.name for path in shelf.iterdir()) == sorted(
        ["index.json", *(f"swift-{identity}.safetensors" for identity in identities[1:])]
    )
    codec.decode(files[1])
    with pytest.raises(ModelMismatchError, match=identities[0]):
        codec.decode(files[0])
    assert publishing.publish(config.run / "last.pt", shelf) == identities[2]  # again: nothing moves
    assert released.available("swift") == [identities[2], identities[1]]
    finished = shelf / f"swift-{identities[1]}.safetensors"  # a file that has the form of a release
    other = config.run / "shelf"
    assert publishing.publish(finished, other) == identities[1]
    assert (other / finished.name).read_bytes() == finished.read_bytes()
    (other / "no.safetensors").write_text("no model")
    with pytest.raises(ModelMismatchError, match="not a released"):
        publishing.publish(other / "no.safetensors", other)
    released.load.cache_clear()


# ---- the systems of the papers


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-checkerboard", "random-mask"])
def test_a_system_of_the_zoo_is_trained_and_codes(name, config, photographs, signals, monkeypatch):
    monkeypatch.setitem(zoo.SYSTEMS, name, zoo.SYSTEMS[name]._replace(channels=((32, 32),) * 8))
    config.model, config.quality, config.minutes = name, 2, 60
    trainer = Trainer(config)
    losses = [trainer.train_step(0.0)["loss"] for _ in range(12)]
    assert min(losses[6:]) < losses[0]
    trainer.save()
    resumed = Trainer(config)
    assert same(resumed.model.state_dict(), trainer.model.state_dict())
    assert same(resumed.average.state_dict(), trainer.average.state_dict())
    assert len(resumed.validate()["bpp"]) == 1
    resumed.task.export(resumed.average, config.run, resumed.step)
    model = zoo.load(name, torch.load(config.run / f"{name}-2.pth", weights_only=True))
    image = photographs["astronaut"][:70, :90]
    codec = Codec(model)
    assert codec.decode(codec.encode(image), out="numpy").shape == image.shape
    config.model = "swift"
    with pytest.raises(ValueError, match="all qualities"):
        Trainer(config)
    config.quality = None
    with pytest.raises(ModelMismatchError, match=f"a run of {name}, not of swift"):
        Trainer(config)


def test_a_system_that_is_not_there(config):
    config.model, config.quality = "mbt2018", 9
    with pytest.raises(ValueError, match="qualities 1 to 8"):
        Trainer(config)


# ---- the type that images are computed in


@pytest.mark.parametrize("limit, native", [("", True), ("AVX2", False), ("AVX512_CORE", False)])
def test_bfloat16_is_for_processors_that_have_it(limit, native, config, signals, monkeypatch):
    """On others it would take many times as long; the log's first line says which type it is."""
    native = native and bfloat16_is_native()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    trainer = Trainer(dataclasses.replace(config, steps=1, graphics=0.0))
    types = set()
    trainer.model.g_s.up.register_forward_hook(lambda _, __, out: types.add(out.dtype))
    trainer.run()
    assert types == {torch.bfloat16 if native else torch.float32}
    start = log_of(config)[0]
    assert (start["event"], start["dtype"]) == ("start", "bfloat16" if native else "float32")


# ---- groups of channels, and the limit of an image's pull


def test_groups_of_a_release_train_export_and_code(config, photographs):
    newest = released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    trainer = Trainer(dataclasses.replace(config, start=newest, groups=(64, 192), graphics=0.0, quantise_from=0.0))
    assert trainer.average.config.groups == (64, 192)
    trainer.train_step(0.5)
    trainer.save(finished=True)
    again = Trainer(dataclasses.replace(config, graphics=0.0))  # a run knows its groups
    assert same(again.model.state_dict(), trainer.model.state_dict())
    path = config.run / "grouped.safetensors"
    export.export(again.average, path)
    assert len(export.restore(path).groups) == 2
    codec, reference = (Codec(released.read_model(path, backend)) for backend in (None, "reference"))
    image = photographs["chelsea"][:150, :200]
    for quality in (1, 60, 100):
        data = codec.encode(image, quality)
        latents = codec.latents(data)
        assert latents.abs().max() > 16
        assert torch.equal(reference.latents(data), latents)
        codec.verify(data)
        assert metrics.psnr(image, np.asarray(codec.decode(data))) > 22 + quality / 10


def test_the_entropy_side_learns_alone(config):
    """The transforms of a release stay bit for bit; a run resumes so; validation measures the whole model."""
    newest = released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    config = dataclasses.replace(config, start=newest, graphics=0.0, quantise_from=0.0, entropy_side=True, ema=0.5)
    trainer = Trainer(config)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    parts = trainer.train_step(0.5)
    assert parts["psnr"] == pytest.approx(100)  # nothing ran the synthesis
    assert parts["bpp"] > 0.05
    trainer.save()
    trainer = Trainer(config)
    trainer.train_step(0.5)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(name.startswith(("groups.", "h_s.", "prior.")) for name in moved)
    assert {name.partition(".")[0] for name in moved} == {"groups", "h_s", "prior"}
    average = dict(trainer.average.named_parameters())
    assert torch.equal(average["g_s.tail.weight"], before["g_s.tail.weight"])
    assert 20 < trainer.validate()["psnr"][2] < 60
    with pytest.raises(ValueError, match="only swift's entropy side"):
        tasks.task("mbt2018", 3, entropy_side=True)


@pytest.mark.parametrize("text, sizes", [("64,192", (64, 192)), ("256", (256,)), ("0,256", None), ("a", None)])
def test_groups_on_the_command_line(text, sizes, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    if sizes:
        assert parser.parse_args(["data", "--run", "run", "--groups", text]).groups == sizes
        return
    with pytest.raises(SystemExit):
        parser.parse_args(["data", "--run", "run", "--groups", text])
    assert "--groups" in capsys.readouterr().err


def test_only_swift_has_groups():
    with pytest.raises(ValueError, match="has its own groups"):
        tasks.task("mbt2018", 3, (64, 64))


def test_beyond_the_limit_an_image_pulls_the_less_the_further_it_is(config):
    trainer = Trainer(dataclasses.replace(config, graphics=0.0))
    x = torch.full((3, 3, CROP, CROP), 0.5)
    t = torch.zeros(3)  # where the weight of an image is 1
    zero = torch.zeros(3)

    def pull_of(bpp: list[float]) -> list[float]:
        bits = (torch.tensor(bpp) * CROP**2).requires_grad_()
        loss, _ = trainer._loss({"x_hat": x, "y_bits": bits, "z_bits": zero}, x, t)
        (gradient,) = torch.autograd.grad(loss, bits)
        return (gradient * 3 * CROP**2).tolist()

    assert pull_of([0.5, 1.0, 0.1]) == pytest.approx([1, 1, 1])
    assert pull_of([0.5, 2.0, 40.0]) == pytest.approx([1, 1 / 4, 1 / 1600])
