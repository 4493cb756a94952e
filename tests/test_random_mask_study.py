"""The random-mask study: a field whose dependence is known, rates against the coder's, the program, its result."""

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from bench.studies import random_mask
from bench.studies.random_mask import PATTERNS, Study, TrainingConfig, markdown, measure, train
from fastcodec.models.zoo.context import RADIUS, RASTER_TAPS, mask_of

pytestmark = pytest.mark.usefixtures("one_thread")

COEFFICIENT = 0.9
SPREAD = 6.0


def chain(images: int, seed: int, channels: int = 2, side: int = 12) -> torch.Tensor:
    """Rows that are Markov chains, y[c] = 0.9 y[c - 1] + noise, independent of each other: int16 [images, M, h, w]."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(images, channels, side, side)) * SPREAD * math.sqrt(1 - COEFFICIENT**2)
    noise[..., 0] = random.normal(size=noise.shape[:-1]) * SPREAD
    y = np.zeros_like(noise)
    for column in range(side):
        y[..., column] = noise[..., column] + (COEFFICIENT * y[..., column - 1] if column else 0)
    return torch.from_numpy(y.round().astype(np.int16))


@pytest.fixture
def study() -> Study:
    return Study(chain(64, seed=1), TrainingConfig(features=4, batch=4))


def steps(study: Study, count: int, of: int = 100) -> None:
    for _ in range(count):
        study.train_step(study.step / of)


def test_the_patterns_have_as_many_neighbours_as_table_1_says():
    assert [len(pattern.taps) for pattern in PATTERNS] == [0, 4, 12, 4, 12, 8]
    _, serial, wide_serial, checkerboard, wide_checkerboard, around = (set(pattern.taps) for pattern in PATTERNS)
    assert serial == {(-1, -1), (-1, 0), (-1, 1), (0, -1)}
    assert serial < wide_serial
    assert checkerboard == {(-1, 0), (0, -1), (0, 1), (1, 0)}
    assert checkerboard < wide_checkerboard
    assert all((dy + dx) % 2 for dy, dx in wide_checkerboard)
    assert around == serial | {(-dy, -dx) for dy, dx in serial}
    for pattern in PATTERNS:  # the paper's ratios are those of its rates
        assert 1 - pattern.paper_bpp / PATTERNS[0].paper_bpp == pytest.approx(pattern.paper_saving, abs=6e-4)


def test_what_is_learnt_of_a_markov_chain_is_what_theory_says(monkeypatch):
    monkeypatch.setattr(random_mask, "WARMUP_STEPS", 20)
    study = Study(chain(256, seed=1), TrainingConfig(features=4, batch=8, learning_rate=1e-2))
    steps(study, 400, of=400)
    result = measure(study, list(chain(24, seed=2).split(1)))
    none = result["bpp_without_context"]
    bits = {  # saved for each latent; 2 of them stand for 256 pixels
        (row - RADIUS, column - RADIUS): 256 / 2 * none * saving
        for row, line in enumerate(result["heat_map"])
        for column, saving in enumerate(line)
        if saving is not None
    }
    assert len(bits) == 24
    beside, beyond = [bits.pop((0, d)) for d in (-1, 1)], [bits.pop((0, d)) for d in (-2, 2)]
    # Mutual information of the chain's elements d apart, -log2(1 - a^2d) / 2, less what borders and hyper latents take.
    information = [-math.log2(1 - COEFFICIENT ** (2 * d)) / 2 for d in (1, 2)]
    assert min(beside) > max(beyond) > min(beyond) > 3 * max(bits.values())
    for measured, theory in zip((beside, beyond), information, strict=True):
        assert all(0.4 * theory < saved < 1.1 * theory for saved in measured)
    savings = {row["pattern"]: row["saving"] for row in result["table"]}
    _, _, serial, checkerboard, _, _ = savings.values()
    assert checkerboard > serial > 0  # both neighbours of the chain tell more than all that came before
    assert result["by_distance"][0]["saving"] == pytest.approx(
        np.mean([result["heat_map"][y][x] for y, x in ((1, 2), (2, 1), (2, 3), (3, 2))])
    )


def test_masks_of_even_counts_have_any_number_of_neighbours(monkeypatch):
    study = Study(chain(8, seed=1), TrainingConfig("even counts", features=4, batch=2))
    seen = []
    monkeypatch.setattr(study.model, "set_mask", seen.append)
    steps(study, 60)
    counts = [int(mask.sum()) for mask in seen]
    assert len(counts) == 60
    assert min(counts) < 5
    assert max(counts) > 19
    assert not any(mask[RADIUS, RADIUS] for mask in seen)


def test_a_network_of_zeros_never_sees_a_neighbour():
    study = Study(chain(8, seed=1), TrainingConfig("zeros", features=4, batch=2))
    before = study.model.context_prediction.weight.detach().clone()
    steps(study, 3)
    assert torch.equal(study.model.context_prediction.weight, before)


def test_rates_are_the_code_lengths_of_the_coder(study):
    steps(study, 20)
    image = chain(1, seed=3, side=8)
    rates = study.rates([image], [mask_of(RASTER_TAPS), torch.zeros(5, 5)])
    assert rates.shape == (2, 1)
    study.model.set_mask(mask_of(RASTER_TAPS))
    study.model.update()
    with torch.inference_mode():
        coded = study.model.encode_latents(image.float())
    assert torch.equal(coded.y_hat, image.float())
    assert rates[0, 0].item() * 64 * 256 == pytest.approx(coded.bits, rel=1e-4)
    assert rates[0, 0] != rates[1, 0]


def test_a_study_restored_goes_on_as_if_never_interrupted(study):
    steps(study, 3)
    stored = io.BytesIO()
    torch.save(study.state(), stored)
    stored.seek(0)
    steps(study, 3)
    again = Study(study.y, study.config)
    again.restore(torch.load(stored, weights_only=True))
    assert again.step == 3
    steps(again, 3)
    for (name, ours), theirs in zip(study.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_interrupted_training_is_resumed_and_a_finished_one_is_not_trained_again(study, tmp_path, monkeypatch):
    checkpoint, step = tmp_path / "folder" / "checkpoint.pt", Study.train_step

    def interrupted(self: Study, progress: float) -> float:
        if self.step == 2:
            raise InterruptedError
        return step(self, progress)

    monkeypatch.setattr(Study, "train_step", interrupted)
    with pytest.raises(InterruptedError):
        train(study, checkpoint, minutes=1.0)
    again = Study(study.y, study.config)
    seconds = torch.load(checkpoint, weights_only=True)["seconds"]
    train(again, checkpoint, minutes=seconds / 60)
    assert (again.step, again.seconds) == (2, seconds)
    with pytest.raises(InterruptedError):  # more time: it would go on
        train(again, checkpoint, minutes=1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, photographs) -> list[str]:
    """41 parts of photographs to train on, of which two are held out, and two to report on."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "train").mkdir()
    (folder / "report").mkdir()
    tiles = [
        pixels[top : top + 80, left : left + 80]
        for pixels in photographs.values()
        for top in range(0, pixels.shape[0] - 80, 80)
        for left in range(0, pixels.shape[1] - 80, 80)
    ]
    for i, tile in enumerate(tiles[:41]):
        Image.fromarray(tile).save(folder / "train" / f"{i:02}.png")
    for i in range(2):
        Image.fromarray(photographs["coffee"][: 64 * (i + 1), :150]).save(folder / "report" / f"{i}.png")
    return ["--data", str(folder / "train"), "--kodak", str(folder / "report"), "--cache", str(folder / "cache")]


SMALL = ["--crop", "64", "--crops", "18", "--channels", "6", "--features", "4"]


def test_the_program_writes_everything_and_does_nothing_twice(folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out" / "study.json"
    options = [*folders, *SMALL, "--minutes", "0.001", "--out", str(out)]
    assert random_mask.main(options) == 0
    record = json.loads(out.read_text())
    assert markdown(record) in capsys.readouterr().out
    assert 0 < record["share_of_entropy"] < 1
    assert (record["quality"], record["channels"], record["crops"], record["seed"]) == (50, 6, 18, 1)
    assert list(record["runs"]) == ["equal odds", "even counts"]
    assert all(run["steps"] > 0 and run["minutes"] > 0 for run in (*record["runs"].values(), record["hyperprior"]))
    assert record["hyperprior"]["bpp"].keys() == {"held-out photographs", "Kodak"}
    for run in record["runs"].values():
        images = {name: result["images"] for name, result in run["results"].items()}
        assert images == {"held-out photographs": 2, "Kodak": 2}
    for result in [result for run in record["runs"].values() for result in run["results"].values()]:
        flat = [saving for row in result["heat_map"] for saving in row]
        assert [i for i, saving in enumerate(flat) if saving is None] == [12]
        assert len(flat) == 25
        assert len(result["table"]) == 6
        assert [d["distance"] for d in result["by_distance"]] == pytest.approx([1, 2**0.5, 2, 5**0.5, 8**0.5])
        assert (result["table"][0]["bpp"], result["table"][0]["saving"]) == (result["bpp_without_context"], 0)
        for row in result["table"]:
            assert row["bpp"] == pytest.approx(np.mean(row["bpp_of_images"]), abs=1e-5)
            assert row["saving"] == pytest.approx(1 - row["bpp"] / result["bpp_without_context"])
    assert len(list(Path(folders[5]).glob("checkpoint-*.pt"))) == 3
    for part in ("_latents", "Study.train_step"):
        monkeypatch.setattr(f"bench.studies.random_mask.{part}", None)
    assert random_mask.main(options) == 0
    assert json.loads(out.read_text()) == record
    with pytest.raises(TypeError):  # another seed: other crops
        random_mask.main([*options, "--seed", "2"])


def test_the_table_has_savings_of_both_rates_without_context():
    table = [
        {"pattern": "none", "neighbours": 0, "bpp": 0.5, "saving": 0.0, "paper_bpp": 0.4332, "paper_saving": 0.0},
        {"pattern": "four", "neighbours": 4, "bpp": 0.3, "saving": 0.4, "paper_bpp": 0.3651, "paper_saving": 0.157},
    ]
    runs = {"equal odds": {"results": {"some photographs": {"images": 7, "table": table}}}}
    lines = markdown({"runs": runs, "hyperprior": {"bpp": {"some photographs": 0.4}}}).splitlines()
    assert lines[0] == "Some photographs, 7 images; Rₕ = 0.4000 bpp:"
    assert lines[-2:] == [
        "| none | 0 | 0.4332 | 0.0 % | 0.5000 | 0.0 % | -25.0 % |",
        "| four | 4 | 0.3651 | 15.7 % | 0.3000 | 40.0 % | 25.0 % |",
    ]


def test_the_figure(folders, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "study.png"
    assert random_mask.main([*folders, *SMALL, "--minutes", "0.001", "--plot", str(path)]) == 0
    assert Image.open(path).width > 1000


def test_what_cannot_be_done_is_an_error_in_words_before_anything_is_computed(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(random_mask, "train", None)
    cache = ["--cache", str(tmp_path)]
    assert random_mask.main(["--data", folders[3], *cache]) == 1
    assert "0 images of at least 256 pixels" in capsys.readouterr().err
    assert random_mask.main([*folders[:2], "--kodak", str(tmp_path), *cache]) == 1
    assert f"{tmp_path}: no images" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert random_mask.main([*folders[:2], *cache, "--plot", str(tmp_path / "study.png")]) == 1
    assert "pip install 'fastcodec[plots]'" in capsys.readouterr().err


def test_the_document_has_the_result_and_says_of_it_what_is_so():
    """What docs/random-mask.md claims: checkerboard above serial, nearer above farther, R_0 above R_h."""
    record = json.loads((ROOT / "bench" / "results" / "random-mask.json").read_text())
    document = (ROOT / "docs" / "random-mask.md").read_text()
    assert markdown(record) in document
    for effort in (*record["runs"].values(), record["hyperprior"]):
        assert f"{effort['steps']:,}" in document
    for name, hyperprior in record["hyperprior"]["bpp"].items():
        equal, even = (run["results"][name] for run in record["runs"].values())
        assert equal["bpp_without_context"] > even["bpp_without_context"] > hyperprior
        for result in (equal, even):
            _, _, serial, checkerboard, _, _ = (row["bpp_of_images"] for row in result["table"])
            assert all(four < twelve for four, twelve in zip(checkerboard, serial, strict=True))
            saved = {
                (dy, dx): result["heat_map"][dy + RADIUS][dx + RADIUS]
                for dy in range(-RADIUS, RADIUS + 1)
                for dx in range(-RADIUS, RADIUS + 1)
                if dy or dx
            }
            adjacent = [saved.pop(tap) for tap in ((0, 1), (0, -1), (1, 0), (-1, 0))]
            assert min(adjacent) > max(saved.values())
            best_single = result["bpp_without_context"] * (1 - max(adjacent))
            assert (best_single > hyperprior) == (result is equal)
            for dy, dx in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                assert saved[dy, dx] > saved[2 * dy, 2 * dx]
