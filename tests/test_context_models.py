"""The study of context models: orders that code all once and know what is decoded alone; today's network in it."""

import itertools

import pytest
import torch

from bench.studies import coding_orders as orders
from bench.studies import context_models
from bench.studies.coding_orders import CLASSES, class_at
from bench.studies.context_models import VARIANTS, Effort, EntropySide, Latents, Variant, train
from fastcodec.kernels import checkerboard
from fastcodec.models.swift.network import Swift, SwiftConfig, gaussian_bits

SMALL = SwiftConfig(
    features=8, latents=16, hyper_latents=4, hyper_features=16, context_features=16, hidden=16, blocks=1
)
ORDERS = {
    "one pass": (orders.one_pass(1), 1),
    "checkerboard": (orders.checkerboard(1), 1),
    "groups": (orders.checkerboard(4), 4),
    "only first": (orders.checkerboard(4, only_first=True), 4),
    "channels": (orders.channels_only(4), 4),
    "four steps": (orders.four_steps(1), 1),
    "dual": (orders.dual(), 2),
    "quadtree": (orders.quadtree(), 4),
}


@pytest.fixture
def start() -> Swift:
    torch.manual_seed(0)
    model = Swift(SMALL)
    torch.nn.init.normal_(model.h_a.down2.weight, std=0.5)
    return model


def small(order: orders.Order, groups: int, **options) -> Variant:
    options = {"features": 16, "hidden": 16} | options
    return Variant((SMALL.latents // groups,) * groups, order, **options)


def side(variant: Variant, start: Swift) -> EntropySide:
    torch.manual_seed(1)
    return EntropySide(variant, start, torch.arange(SMALL.latents)).eval()


@pytest.mark.parametrize("name", ORDERS)
def test_every_pair_is_coded_once(name):
    order, groups = ORDERS[name]
    pairs = [pair for coded in order.passes for pair in coded]
    assert sorted(pairs) == list(itertools.product(range(CLASSES), range(groups)))
    assert len(order.nets) == len(order.passes)


def test_the_orders_are_those_of_the_papers():
    assert [len(order.passes) for order, _ in ORDERS.values()] == [1, 2, 8, 5, 4, 4, 2, 4]
    assert orders.checkerboard(1).passes == (((0, 0), (3, 0)), ((1, 0), (2, 0)))
    for coded in orders.quadtree().passes:  # every class, and every group, once a pass
        assert {c for c, _ in coded} == {g for _, g in coded} == set(range(CLASSES))
    for g in range(CLASSES):  # after two passes a group is decoded on a checkerboard
        known = {c for c, of in orders.quadtree().known_before(2) if of == g}
        assert known in ({0, 3}, {1, 2})
    assert {c for c, g in orders.dual().passes[0] if g == 1} == set(orders.NON_ANCHORS)


def test_classes_repeat_every_two_positions():
    for c, dy, dx in itertools.product(range(CLASSES), range(-3, 4), range(-3, 4)):
        row, column = c // 2 + dy, c % 2 + dx
        assert class_at(c, dy, dx) == 2 * (row % 2) + column % 2


@pytest.mark.parametrize("name", ORDERS)
def test_a_pass_knows_what_is_decoded_and_nothing_else(name, start, monkeypatch):
    """Latents of a later pass are changed: the parameters of it and of all before it stay, one after it moves."""
    order, groups = ORDERS[name]
    model = side(small(order, groups, across=3), start)
    for context in model.contexts.values():
        torch.nn.init.normal_(context.weight, std=0.1)
    # psi must not tell what is changed
    monkeypatch.setattr(model.h_a, "forward", lambda y, t: torch.zeros(len(y), SMALL.hyper_latents, 2, 2))
    seen = []
    predict = model.predict
    monkeypatch.setattr(
        model, "predict", lambda number, *rest: seen.append((number, predict(number, *rest))) or seen[-1][1]
    )
    y, t = 4 * torch.randn(1, SMALL.latents, 8, 8), torch.tensor([0.5])
    model(y, t)
    before = seen[:]
    for number, pairs in enumerate(order.passes):
        seen.clear()
        changed = y.clone()
        for c, g in pairs:
            of = slice(model.starts[g], model.starts[g + 1])
            changed[:, of, c // 2 :: 2, c % 2 :: 2] += 3
        model(changed, t)
        moved = {at for (at, old), (_, new) in zip(before, seen, strict=True) if not torch.equal(old[0], new[0])}
        assert moved <= set(range(number + 1, len(order.passes)))
        assert moved or number == len(order.passes) - 1


WIDER = {"today": {}, "wider": {"hidden": 32}, "deeper": {"deep": True}, "7x7": {"kernel": 7}}


@pytest.mark.parametrize("t", [0.0, 0.6])
@pytest.mark.parametrize("options", WIDER.values(), ids=WIDER)
def test_the_checkerboard_begins_as_todays_network(start, t, options):
    """The study's checkerboard, and what only adds to it, begin with Swift's means and scale indexes."""
    net = start.groups[0]
    torch.nn.init.normal_(net.quality_bias.points, std=0.3)
    model = side(small(*ORDERS["checkerboard"], **options), start)
    y = 6 * torch.randn(2, SMALL.latents, 8, 12)
    places = torch.full((2,), t)
    with torch.no_grad():
        bits, _ = model(y, places)
        z_hat = torch.round(start.h_a(y, places)).clamp(-127, 127)
        expected = torch.zeros(2)
        halves = zip(*(checkerboard.split(v.permute(0, 2, 3, 1)) for v in (start.h_s(z_hat), y)), strict=True)
        phi = None
        for psi, target in halves:
            means, indexes = net(psi, phi, places)
            symbols = torch.round(target - means)
            expected += gaussian_bits(symbols, indexes).flatten(1).sum(1)
            phi = net.context_at_non_anchors(means + symbols, means[..., :0], 8, 12)
    torch.testing.assert_close(bits, expected, rtol=1e-4, atol=1e-2)


def test_the_count_of_multiplications():
    """Today's network as docs/architecture.md counts it, less the anchors' zero context: 1,536 + 1,280 - 128."""
    start = Swift()
    channels = torch.arange(256)
    assert EntropySide(VARIANTS["checkerboard"], start, channels).macs() == 1536 + 1280 - 128
    assert EntropySide(VARIANTS["no context"], start, channels).macs() == 1024
    # The first pass of two groups: psi alone, and half of the outputs.
    two = EntropySide(VARIANTS["2 groups, even"], start, channels)
    nets = 4 * (512 + 256 + 256) / 2 - 256 / 2  # four passes on half of the positions each, the first without context
    contexts = 12 * 128 / 2 * 2 + 128 / 2 + 128 / 2  # own group's anchors in two passes; the other group's in two
    assert two.macs() == nets + contexts


def test_training_learns_what_a_neighbour_tells(start):
    """Channels that repeat their anchors cost the checkerboard fewer bits than no context does."""
    random = torch.Generator().manual_seed(0)
    cells = 3 * torch.randn(64, SMALL.latents, 4, 4, generator=random)
    y = cells.repeat_interleave(2, 2).repeat_interleave(2, 3).half()
    held_out = {"photographs": y[None, :8].expand(5, -1, -1, -1, -1), "graphics": y[None, :8].expand(5, -1, -1, -1, -1)}
    latents = Latents(y, torch.full((64,), 0.5), held_out)
    wide = {"hidden": 64}
    context_models.VARIANTS["small"] = small(*ORDERS["checkerboard"], **wide)
    context_models.VARIANTS["small without"] = small(*ORDERS["one pass"], **wide)
    try:
        rates = [
            train(name, latents, Swift(SMALL), Effort(steps=300, learning_rate=1e-2, afresh=True))["photographs"][
                "bpp"
            ][2]
            for name in ("small", "small without")
        ]
    finally:
        del context_models.VARIANTS["small"], context_models.VARIANTS["small without"]
    assert rates[0] < 0.85 * rates[1]


def test_the_table_compares_with_the_first_one():
    split = {"bpp": [0.1, 0.2, 0.3, 0.4, 0.5], "z_bpp": [0.001, 0.002, 0.003, 0.004, 0.005]}
    half = {"bpp": [b / 2 for b in split["bpp"]], "z_bpp": split["z_bpp"]}
    row = {"passes": 2, "kmac": 2.69, "cpu_seconds": 3}
    results = {
        "a": {**row, "photographs": split, "graphics": split},
        "b": {**row, "photographs": half, "graphics": split},
    }
    lines = context_models.table(results, "a").split("\n")
    assert lines[2] == "| a | 2 | 2.69 | +0.00 % | +0.00 % | 1.0 % | 3 |"
    assert lines[3] == "| b | 2 | 2.69 | -50.00 % | +0.00 % | 2.0 % | 3 |"
