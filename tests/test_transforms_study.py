"""The study of transforms: what is added changes nothing at first, learns, and is counted."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bench.studies import transforms
from bench.studies.transforms import VARIANTS, MuonAndAdamW, Variant, block_macs, table, train
from fastcodec.models.swift.network import Block, Swift, SwiftConfig
from fastcodec.train import TrainingConfig

SMALL = SwiftConfig(
    features=16, latents=32, hyper_latents=8, hyper_features=16, context_features=16, hidden=16, blocks=1
)


def lively() -> Swift:
    torch.manual_seed(0)
    model = Swift(SMALL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("project.weight", "merge.weight", "depthwise.weight", "points")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def macs(module: nn.Module, *inputs: torch.Tensor) -> int:
    total = 0

    def count(layer: nn.Conv2d, _, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_begins_as_the_release(name):
    model, grown = lively(), lively()
    VARIANTS[name].grow(grown)
    x, t = torch.rand(2, 3, 64, 64), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        y = model.g_a(x, t)
        torch.testing.assert_close(grown.g_a(x, t), y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grown.g_s(y, t), model.g_s(y, t), rtol=1e-5, atol=1e-5)
    added = sum(p.numel() for p in grown.parameters()) - sum(p.numel() for p in model.parameters())
    assert (added > 0) == (VARIANTS[name].macs > 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_decoding_takes_more_is_counted(name):
    grown, model = Swift(), Swift()
    VARIANTS[name].grow(grown)
    latents, t = torch.zeros(1, 256, 4, 4), torch.tensor([0.5])
    more = macs(grown.g_s, latents, t) - macs(model.g_s, latents, t)
    assert more / 64**2 == pytest.approx(VARIANTS[name].macs)


def test_blocks_are_counted_as_the_document_does():
    """docs/architecture.md: three blocks of 128 at 1/8 and a block of 256 at 1/16."""
    assert 3 * block_macs(128, 64) == pytest.approx(249_216 / 64)
    assert block_macs(256, 256) == pytest.approx(329_984 / 256)
    assert macs(Block(8, None), torch.zeros(1, 8, 4, 4)) == pytest.approx(16 * 8 * 8 * block_macs(8, 64))


def test_a_run_trains_what_was_added(tmp_path, photographs, monkeypatch):
    for i in range(40):
        part = list(photographs.values())[i % 4][i : i + 70, i : i + 70]
        Image.fromarray(part).save(tmp_path / f"{i:02}.png")
    seen = []

    def grow(model: Swift) -> None:
        transforms._block_at_8(model)
        seen.append(model.g_s.blocks[-1].merge.weight)

    monkeypatch.setitem(VARIANTS, "tried", Variant(grow, 5.0, {"ema": 0.5}))
    monkeypatch.setattr(transforms.time, "process_time", iter(np.arange(0, 100, 0.5)).__next__)
    config = TrainingConfig(tmp_path, tmp_path / "run", batch=2, crop=64, graphics=0.0, warmup_steps=1)
    result = train("tried", config, 2.0)
    assert result["steps"] == 3
    assert result["macs"] == 5.0
    assert result["validation_loss"] > 0
    assert any(weight.abs().max() > 0 for weight in seen)


def test_muon_moves_dense_weights_along_every_direction_alike_and_the_rest_as_adamw_does():
    model = lively()
    optimiser = MuonAndAdamW(model, [{"params": list(model.parameters()), "weight_decay": 0.0, "factor": 1.0}])
    assert {group["factor"] for group in optimiser.param_groups} == {1.0}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(1)
    for group in optimiser.param_groups:
        group["lr"] = 1e-3
    x, t = torch.rand(2, 3, 64, 64), torch.tensor([0.2, 0.9])
    out = model(x, t)
    ((out["x_hat"] - x).square().mean() + (out["y_bits"] + out["z_bits"]).mean() * 1e-4).backward()
    optimiser.step()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    for name in ("g_a.down.weight", "g_s.tail.weight", "groups.0.second.weight", "g_a.head.weight"):
        matrix = moved[name].flatten(1)
        values = torch.linalg.svdvals(matrix) / (1e-3 * 0.2 * max(matrix.shape) ** 0.5)
        assert 0.5 < values.median() < 1.4, name  # Newton-Schulz iterations leave singular values about 1
    for name in ("g_a.blocks.0.depthwise.weight", "g_a.down.bias", "log_gain.points"):
        steps = moved[name].abs()
        assert steps[steps > 0].median().item() == pytest.approx(1e-3, rel=0.02), name  # AdamW's first: the rate itself
    optimiser.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_the_table_compares_with_the_first_one():
    row = {"macs": 0.0, "steps": 100, "validation_loss": 0.5, "graphics_loss": 4.0}
    lines = table({"a": row, "b": {**row, "macs": 1300.0, "validation_loss": 0.495}}).split("\n")
    assert lines[2] == "| a | 0.00 | 100 | 0.50000 | +0.00 % | 4.000 |"
    assert lines[3] == "| b | 1.30 | 100 | 0.49500 | -1.00 % | 4.000 |"
