"""In what order a tile's latents are coded, and what of them is known when: passes over 2x2 cells and channel groups.

Positions fall into four classes by the parity of row and column, channels into groups. A pass codes some (class, group)
pairs all at once, from what the passes before it left. The checkerboard (He et al. 2021) is two passes over classes;
ELIC (He et al. 2022) makes these two passes for each group in turn; the dual prior and the quadtree (Li et al. 2022,
DCVC-HEM; Li et al. 2023, DCVC-DC) code another group at each class, so that two or four passes are context in space and
in channels at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

CLASSES = 4  # 2 * (row % 2) + column % 2
ANCHORS, NON_ANCHORS = (0, 3), (1, 2)
DIAGONAL_FIRST = (0, 3, 1, 2)  # the order in which a quadtree, or four steps in space, visit the classes

Pair = tuple[int, int]  # class, group


@dataclass(frozen=True)
class Order:
    """Passes of (class, group) pairs, each pair once. nets: for each pass, the number of its parameter network."""

    passes: tuple[tuple[Pair, ...], ...]
    nets: tuple[int, ...]

    def known_before(self, number: int) -> frozenset[Pair]:
        """The pairs that are decoded when a pass begins."""
        return frozenset(pair for before in self.passes[:number] for pair in before)


def one_pass(groups: int) -> Order:
    """No context at all: the hyperprior alone."""
    return Order((tuple((c, g) for g in range(groups) for c in range(CLASSES)),), (0,))


def checkerboard(groups: int, only_first: bool = False) -> Order:
    """Anchors and non-anchors of each group in turn; only_first: of the first group, the others in one pass each."""
    passes, nets = [], []
    for g in range(groups):
        halves = (ANCHORS, NON_ANCHORS) if g == 0 or not only_first else ((*ANCHORS, *NON_ANCHORS),)
        passes += [tuple((c, g) for c in half) for half in halves]
        nets += [g] * len(halves)
    return Order(tuple(passes), tuple(nets))


def channels_only(groups: int) -> Order:
    """A pass for each group (Minnen and Singh 2020)."""
    return Order(tuple(tuple((c, g) for c in range(CLASSES)) for g in range(groups)), tuple(range(groups)))


def four_steps(groups: int) -> Order:
    """A pass for each class, all channels at once."""
    return Order(tuple(tuple((c, g) for g in range(groups)) for c in DIAGONAL_FIRST), tuple(range(CLASSES)))


def dual() -> Order:
    """Two groups: anchors of the one with non-anchors of the other, then the rest."""
    first = tuple((c, g) for g, half in enumerate((ANCHORS, NON_ANCHORS)) for c in half)
    return Order((first, tuple((c, 1 - g) for c, g in first)), (0, 1))


def quadtree() -> Order:
    """Four groups: in each pass every class codes another one; a group's classes come diagonal first."""
    return Order(tuple(tuple((c, c ^ step) for c in range(CLASSES)) for step in DIAGONAL_FIRST), tuple(range(CLASSES)))


def class_at(position_class: int, dy: int, dx: int) -> int:
    """The class of the position (dy, dx) away from one of a class."""
    return position_class ^ (2 * (dy % 2) + dx % 2)


def starts(groups: Sequence[int]) -> list[int]:
    """Where each group's channels begin, and where the last one ends."""
    return [0, *accumulate(groups)]
