"""`fastcodec info`: the headers of files. Imports no PyTorch."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from ..container import DEFAULT_LIMITS, MAGIC, Limits, info
from ..errors import FastcodecError
from .report import explain, per_pixel, printable, say, say_error
from .streams import STDIN, read_fic, read_stdin


def main(arguments: argparse.Namespace) -> int:
    """Run `fastcodec info`."""
    limits = Limits(arguments.max_pixels, DEFAULT_LIMITS.max_metadata)
    records, failed = [], False
    if len(arguments.files) > 1 and any(path is STDIN for path in arguments.files):
        say("-: standard input is one file, and several are given")
        return 2
    for path in arguments.files:
        try:
            facts = asdict(info(read_stdin(MAGIC) if path is STDIN else read_fic(path), limits))
        except (FastcodecError, OSError, MemoryError) as error:
            failed = True
            if arguments.json:
                message = explain(error, path).removeprefix(f"{path}: ")
                print(json.dumps({"file": str(path), "error": type(error).__name__, "message": message}))
            say_error(explain(error, path), error)
            continue
        record = {"file": str(path), **facts, "bpp": per_pixel(facts["bytes"], facts)}
        records.append(record)
        if arguments.json:
            print(json.dumps(record), flush=True)
    if not arguments.json and records:
        print(_details(records[0]) if len(arguments.files) == 1 else _table(records))
    return int(failed)


def _details(record: dict[str, Any]) -> str:
    portable = "portable" if record["portable"] else "not portable (floating point)"
    rows = {
        "size": f"{record['width']} x {record['height']}, {record['mode']}",
        "file": f"{record['bytes']} bytes, {record['bpp']:.3f} bits a pixel, {_tiles(record)}",
        "quality": f"{record['quality']}",
        "model": f"{record['model']}, {portable}",
        **({} if record["portable"] else {"machine": record["written_on"]}),
        "format": f"version {record['version']}",
        "metadata": ", ".join(
            f"{name} {_bytes(record[key])}"
            for name, key in (("ICC profile", "icc_bytes"), ("EXIF", "exif_bytes"), ("XMP", "xmp_bytes"))
        ),
        **({"dpi": " x ".join(f"{value:.7g}" for value in record["dpi"])} if record["dpi"] else {}),
    }
    return "\n".join([printable(record["file"]), *(f"  {name:<9}{text}" for name, text in rows.items())])


def _table(records: list[dict[str, Any]]) -> str:
    columns = ("file", "width", "height", "mode", "quality", "bytes", "bpp", "tiles", "lossless_tiles", "model")
    texts = [{**record, "file": printable(record["file"]), "bpp": f"{record['bpp']:.3f}"} for record in records]
    rows = [columns, *([str(text[c]) for c in columns] for text in texts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    words = {"file", "mode", "model"}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if name in words else cell.rjust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _tiles(record: dict[str, Any]) -> str:
    tiles, lossless = record["tiles"], record["lossless_tiles"]
    text = "1 tile" if tiles == 1 else f"{tiles} tiles"
    if lossless:
        text += ", lossless" if lossless == tiles else f", {lossless} of them lossless"
    return text


def _bytes(count: int) -> str:
    return f"{count} bytes" if count else "none"
