"""Table sets: integer probability tables of sum 2^14, one per index, and how float probabilities become such tables."""

import hashlib
import heapq
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .. import forks
from ._cpu_abi import CpuTables

# The format's constants that tables obey; rans.h is their home, and a test compares.
PROBABILITY_BITS = 14
PROBABILITY_TOTAL = 1 << PROBABILITY_BITS
MAX_TABLES = 256


def quantise_pmf(pmf: np.ndarray) -> np.ndarray:
    """Integer frequencies of a distribution: uint16 [K], each at least 1, their sum exactly 2^14.

    They minimise the expected code length -sum(p log2 f), hence the Kullback-Leibler divergence. The gain of raising f
    to f + 1 is p log(1 + 1/f), which falls with f, so taking the largest gain again and again ends in the optimum.
    Nearly all of it is taken at once: every gain above a threshold, found by bisection; the heap does the rest.

    Args:
        pmf: float64 [K], at least 0, K from 1 to 2^14; need not sum to 1.

    Raises:
        ValueError: another shape, or probabilities that are negative, not finite, or all 0.
    """
    pmf = np.asarray(pmf, dtype=np.float64)
    if pmf.ndim != 1 or not 1 <= pmf.size <= PROBABILITY_TOTAL:
        raise ValueError(f"a table needs 1 to {PROBABILITY_TOTAL} entries, not an array of shape {pmf.shape}")
    if not np.isfinite(pmf).all() or (pmf < 0).any() or pmf.sum() <= 0:
        raise ValueError("probabilities must be finite, at least 0, and not all 0")
    pmf = pmf / pmf.sum()

    def above(threshold: float) -> np.ndarray:
        # The least f of 1 and more with p log(1 + 1/f) <= threshold.
        with np.errstate(divide="ignore", over="ignore"):
            exact = np.where(pmf > 0, 1 / np.expm1(threshold / np.where(pmf > 0, pmf, 1.0)), 0.0)
        return np.maximum(1, np.ceil(np.minimum(exact, PROBABILITY_TOTAL))).astype(np.int64)

    low, high = 1e-12, 1.0  # of the threshold; high leaves every f at 1
    for _ in range(60):
        middle = math.sqrt(low * high)
        if above(middle).sum() > PROBABILITY_TOTAL:
            low = middle
        else:
            high = middle
    frequencies = above(high)
    heap = [
        (-p * math.log1p(1 / f), i) for i, (p, f) in enumerate(zip(pmf.tolist(), frequencies.tolist(), strict=True))
    ]
    heapq.heapify(heap)
    for _ in range(PROBABILITY_TOTAL - int(frequencies.sum())):
        i = heap[0][1]
        frequencies[i] += 1
        heapq.heapreplace(heap, (-pmf[i] * math.log1p(1 / int(frequencies[i])), i))
    return frequencies.astype(np.uint16)


_handle_lock = threading.Lock()
_known_lock = threading.Lock()
forks.hold(_handle_lock)
forks.hold(_known_lock)
_known: weakref.WeakValueDictionary[str, "TableSet"] = weakref.WeakValueDictionary()  # by identity


class TableSet:
    """Up to 256 integer probability tables. Immutable; equal when all integers are.

    Table i codes the symbols `first_symbol(i)` .. `first_symbol(i) + K - 2` by its K frequencies but the last, which is
    the sentinel of an escape: any other int16 value, at 16 bits more. Frequencies are at least 1 and sum to 2^14. In a
    set with `skip`, symbols of table 0 are not coded: they are 0. Its table 0 is then the sentinel alone.

    Args:
        tables: for each table its first symbol (int16) and its frequencies (K integers, 1 <= K <= 2^14).
        skip: whether index 0 means "not coded".

    Raises:
        ValueError: no table or more than 256, or one that breaks the rules above.
    """

    def __init__(self, tables: Iterable[tuple[int, Sequence[int] | np.ndarray]], *, skip: bool = False) -> None:
        firsts, arrays = [], []
        for i, (first, values) in enumerate(tables):
            frequencies = np.asarray(values)
            if frequencies.ndim != 1 or not 1 <= frequencies.size <= PROBABILITY_TOTAL:
                raise ValueError(f"table {i}: needs 1 to {PROBABILITY_TOTAL} frequencies in one dimension")
            if frequencies.dtype.kind not in "iu":
                raise ValueError(f"table {i}: frequencies must be integers, not {frequencies.dtype}")
            if int(frequencies.min()) < 1 or int(frequencies.sum(dtype=np.int64)) != PROBABILITY_TOTAL:
                raise ValueError(f"table {i}: frequencies must be at least 1 and sum to {PROBABILITY_TOTAL}")
            if first < -32768 or first > 32767 or first + frequencies.size - 2 > 32767:
                raise ValueError(f"table {i}: its symbols leave int16")
            firsts.append(int(first))
            arrays.append(frequencies.astype(np.uint16))
        if not 1 <= len(arrays) <= MAX_TABLES:
            raise ValueError(f"a set has 1 to {MAX_TABLES} tables, not {len(arrays)}")
        if skip and (arrays[0].size != 1 or firsts[0] != 0):
            raise ValueError("table 0 of a set with skip must be the sentinel alone: (0, [2**14])")
        self._skip = bool(skip)
        self._firsts = np.array(firsts, dtype="<i2")
        self._sizes = np.array([array.size for array in arrays], dtype="<u2")
        self._frequencies = np.concatenate(arrays).astype("<u2")
        self._ends = np.cumsum(self._sizes, dtype=np.int64)
        self._frequencies.flags.writeable = False
        self._cpu_tables: CpuTables | None = None
        self._identity = hashlib.sha256(self.to_bytes()).hexdigest()
        # Operators take tables by their identity. It is registered here and not where they are called, as torch.compile
        # cannot trace that; of equal sets the first one is, so the others keep it.
        with _known_lock:
            known = _known.setdefault(self._identity, self)
        self._twin = known if known is not self else None

    @classmethod
    def from_pmfs(cls, pmfs: Iterable[tuple[int, np.ndarray, float]], *, skip: bool = False) -> "TableSet":
        """A set from float distributions, for example a factorised prior's.

        Args:
            pmfs: for each table its first symbol, the probabilities of its symbols (float64 [K - 1]) and the mass of
                all other values (the sentinel's). They need not sum to 1. With `skip`, the first one is not read.
            skip: as for the class.

        Raises:
            ValueError: as `quantise_pmf`, of the probabilities with the mass behind them, and as the class.
        """
        tables: list[tuple[int, Sequence[int] | np.ndarray]] = []
        for i, (first, pmf, tail_mass) in enumerate(pmfs):
            if skip and i == 0:
                tables.append((0, [PROBABILITY_TOTAL]))
            else:
                tables.append((first, quantise_pmf(np.append(np.asarray(pmf, dtype=np.float64), tail_mass))))
        return cls(tables, skip=skip)

    @property
    def count(self) -> int:
        """The number of tables."""
        return len(self._sizes)

    @property
    def skip(self) -> bool:
        """Whether index 0 means "not coded": symbols there are 0 and take no bits."""
        return self._skip

    @property
    def identity(self) -> str:
        """The SHA-256 of `to_bytes()` in hexadecimal digits: equal for equal sets."""
        return self._identity

    def first_symbol(self, i: int) -> int:
        """The symbol of table i's first entry. As in a list, a negative i counts from the end.

        Raises:
            IndexError: there is no table i.
        """
        return int(self._firsts[i])

    def frequencies(self, i: int) -> np.ndarray:
        """Table i's frequencies, uint16 [K], the sentinel last; read-only. A negative i counts from the end.

        Raises:
            IndexError: there is no table i.
        """
        end = int(self._ends[i])
        return self._frequencies[end - int(self._sizes[i]) : end]

    def to_bytes(self) -> bytes:
        """The set's integers, little endian: u16 count, u16 skip, i16 firsts, u16 sizes, u16 frequencies of all."""
        head = np.array([self.count, self.skip], dtype="<u2")
        return b"".join(array.tobytes() for array in (head, self._firsts, self._sizes, self._frequencies))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "TableSet":
        """The inverse of `to_bytes`.

        Raises:
            ValueError: the bytes are not a table set.
        """
        if len(data) < 4 or len(data) % 2:
            raise ValueError("not a table set: its length does not fit")
        values = np.frombuffer(data, dtype="<u2")
        count, skip = int(values[0]), int(values[1])
        sizes = values[2 + count : 2 + 2 * count].astype(np.int64)
        if (
            skip > 1
            or not 1 <= count <= MAX_TABLES
            or len(values) != 2 + 2 * count + sizes.sum()
            or len(sizes) != count
        ):
            raise ValueError("not a table set: its header does not fit its length")
        firsts = values[2 : 2 + count].view("<i2")
        parts = np.split(values[2 + 2 * count :], np.cumsum(sizes)[:-1])
        return cls(zip(firsts.tolist(), parts, strict=True), skip=bool(skip))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableSet) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __reduce__(self) -> tuple[Callable[[bytes], "TableSet"], tuple[bytes]]:
        return TableSet.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        return f"TableSet({self.count} tables, skip={self.skip}, {self.identity[:12]})"


def find_tables(identity: str) -> TableSet:
    """A set by its identity.

    Raises:
        LookupError: it, and each one equal to it, is gone.
    """
    if (found := _known.get(identity)) is None:
        raise LookupError(f"no table set {identity[:12]} in this process: keep the TableSet while it is in use")
    return found


def table_arrays(tables: TableSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First symbols (int16) and sizes (uint16) of all tables, and all frequencies (uint16), table by table."""
    return tables._firsts, tables._sizes, tables._frequencies


def cpu_tables(tables: TableSet) -> CpuTables:
    """The CPU library's copy, made at first use: once, or a thread could free what another one is reading."""
    with _handle_lock:
        if tables._cpu_tables is None:
            tables._cpu_tables = CpuTables(tables.skip, *table_arrays(tables))
        return tables._cpu_tables
