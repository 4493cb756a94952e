"""Runs all tests marked `gpu`, several files at a time, as `make gpu` does: `python tests/gpu_suite.py [OPTIONS]`.

Each file that has such tests gets a pytest of its own. A new machine spends most of the time in compiling kernels for
its GPU, one core each; side by side the suite ends in minutes. What a file printed is shown when it has ended. The exit
status is 0 if all passed.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

TESTS = Path(__file__).parent
AT_ONCE = 6  # each has a context of its own on the GPU, of some hundred megabytes
NOTHING_COLLECTED = 5


def files() -> list[Path]:
    """The test files that have tests marked `gpu`, the largest first: they take the longest."""
    marked = [path for path in TESTS.glob("test_*.py") if "mark.gpu" in path.read_text("utf-8")]
    return sorted(marked, key=lambda path: -path.stat().st_size)


def run(path: Path, options: list[str]) -> tuple[int, str, float]:
    """A file's exit status, what it printed, and its seconds."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", str(path), *options]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    status = 0 if done.returncode == NOTHING_COLLECTED else done.returncode
    return status, done.stdout + done.stderr, time.monotonic() - start


def main(options: list[str]) -> int:
    worst = 0
    at_once = max(1, min(AT_ONCE, (os.cpu_count() or 2) // 2))
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(run, path, options): path for path in files()}
        for future in as_completed(running):
            status, printed, seconds = future.result()
            print(f"--- {running[future].name}: {'passed' if status == 0 else 'FAILED'}, {seconds:.0f} s", flush=True)
            print(printed.strip(), flush=True)
            worst = max(worst, status)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
