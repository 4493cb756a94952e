"""Times by the ranges that a profiler sees: of a toy function, of intervals as a GPU has them, and of the engine."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torch.profiler import record_function

from bench import stages
from fastcodec import Codec


def test_a_nested_range_counts_once():
    def work(milliseconds):
        with record_function("outer"):
            time.sleep(milliseconds / 1e3)
            with record_function("inner"):
                time.sleep(3 * milliseconds / 1e3)

    def toy():
        work(10)
        work(10)
        time.sleep(0.005)
        with ThreadPoolExecutor(1) as pool:  # another thread's ranges are its own
            pool.submit(work, 1).result()

    found = stages.milliseconds(toy, ("outer", "inner", "never"))
    assert list(found) == ["outer", "inner", "never", "other", "total"]
    assert 20 <= found["outer"] < found["inner"]
    assert found["inner"] >= 60
    assert found["never"] == 0
    assert found["other"] >= 9
    assert found["total"] == pytest.approx(sum(list(found.values())[:-1]))


def test_work_belongs_to_the_innermost_range_of_its_stream():
    interval = stages.Interval
    ranges = [interval("outer", 0, 100, 7), interval("inner", 40, 60, 7), interval("copies", 0, 100, 13)]
    work = [interval("kernel", *times) for times in ((0, 10, 7), (20, 50, 13), (42, 50, 7), (90, 95, 7), (200, 203, 7))]
    seen = stages.Profile([interval(stages.TOTAL, 0, 900, 1)], ranges, work)
    assert [name for name, _ in seen.located()] == ["outer", "copies", "inner", "outer", stages.TOTAL]
    found = stages.by_stage(seen, ("outer", "inner", "copies"))
    assert found == pytest.approx({"outer": 0.015, "inner": 0.008, "copies": 0.030, "other": 0.003, "total": 0.056})


@pytest.mark.usefixtures("network_tiles")
def test_the_engine_marks_its_stages():
    codec = Codec.load("swift", "cpu")
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = codec.encode(image)
    found = stages.milliseconds(lambda: codec.decode(data))
    assert found["analysis"] == 0
    assert all(found[stage] > 0 for stage in ("hyper", "parameters", "rans", "synthesis", "other"))
