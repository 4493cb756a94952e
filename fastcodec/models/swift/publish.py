"""Release a trained model: `python -m fastcodec.models.swift.publish RUN/last.pt`, or `... FILE.safetensors`.

Writes a checkpoint's averaged weights in the released form beside the other releases, or copies a file that has that
form already (with tables of its own, say), puts the new identity first in index.json and keeps the one before it, so
that its files still decode; older ones are dropped before 1.0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import torch

from .export import export
from .network import Swift, SwiftConfig
from .release import read_model, weights_folder

NAME = "swift"
KEPT_RELEASES = 2


def publish(trained: Path, folder: Path) -> str:
    """Release a checkpoint of the trainer, or a released model's file, in `folder`; returns its identity in hex.

    Raises ModelMismatchError for a .safetensors file that is no released model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{NAME}.tmp"
    if trained.suffix == ".safetensors":
        identity = read_model(trained).identity.hex()
        shutil.copyfile(trained, scratch)
    else:
        state = torch.load(trained, map_location="cpu", weights_only=True)
        model = Swift(SwiftConfig(**state["config"]))
        model.load_state_dict(state["average"])
        identity = export(model, scratch, about={"steps": str(state["step"])})
    scratch.chmod(0o644)  # safetensors writes for its owner alone
    os.replace(scratch, folder / f"{NAME}-{identity}.safetensors")
    index_path = folder / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {}
    releases = [identity, *(known for known in index.get(NAME, []) if known != identity)]
    index[NAME] = releases[:KEPT_RELEASES]
    scratch.write_text(json.dumps(index, indent=1) + "\n")
    os.replace(scratch, index_path)
    for dropped in releases[KEPT_RELEASES:]:
        (folder / f"{NAME}-{dropped}.safetensors").unlink(missing_ok=True)
    return identity


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path, help="a checkpoint, or a released model's file")
    parser.add_argument("--folder", type=Path, default=weights_folder(), help="where releases live (%(default)s)")
    arguments = parser.parse_args()
    print(publish(arguments.trained, arguments.folder))


if __name__ == "__main__":
    main()
