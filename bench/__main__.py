"""`python -m bench [NAME...]`: run benchmarks, print their tables and write bench/results/NAME.json."""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from fastcodec import __version__, machine

from . import common

NAMES = (
    *("coder", "mixture", "compressai", "gpu", "kodak", "processors", "overhead", "memory", "tiling", "large"),
    *("screens", "papers"),
)


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 if a part of a benchmark failed, or one that was asked for by name could not run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    missed = failed = 0
    for name in args.names or NAMES:
        common.console.rule(f"[bold]{name}", align="left")
        start = time.perf_counter()
        try:
            figures = importlib.import_module(f"bench.{name}").run()
        except common.CannotRunError as error:
            common.console.print(f"skipped: {error}", markup=False, soft_wrap=True)
            missed += 1
            continue
        result = {
            "benchmark": name,
            "version": __version__,
            "date": time.strftime("%Y-%m-%d"),
            "seconds": round(time.perf_counter() - start, 1),
            "machine": machine.describe(),
            **figures,
        }
        failed += bool(figures.get("failures"))
        path = common.RESULTS / f"{name}.json"
        common.write_json(path, common.rounded(result))
        common.console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return 1 if failed or (missed and args.names) else 0


if __name__ == "__main__":
    sys.exit(main())
