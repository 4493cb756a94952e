"""PyTorch's default device and dtype are the caller's: the codec reads and writes the same under any."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import fastcodec
from fastcodec import rans
from fastcodec.codec import Codec
from fastcodec.models import zoo
from fastcodec.models.swift import export
from fastcodec.models.swift import release as released

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = [
    ("meta", torch.float32),
    ("cpu", torch.bfloat16),
    ("cpu", torch.float16),
    ("cpu", torch.float64),
    ("meta", torch.float16),
]
SYSTEMS = {
    "bmshj2018-factorized": (8, 12),
    "mbt2018-mean": (8, 12),
    "mbt2018": (8, 12),
    "mbt2018-checkerboard": (8, 12),
    "cheng2020-serial-attention": (8,),
    "cheng2020-checkerboard-mixture": (8,),
    "mbt2018-mean-vbr": (8, 12),
}


@contextmanager
def defaults(device: str | None, dtype: torch.dtype) -> Iterator[None]:
    try:
        torch.set_default_device(device)
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def use(codec: Codec, image: np.ndarray) -> dict:
    """Everything that a codec does."""
    blob = codec.encode(image)
    codec.verify(blob)
    done = {
        "file": blob,
        "estimate": codec.encode(codec.decode(blob, out="picture")).estimated_bits,
        "gray": codec.encode(image[..., 1]),
        "of a tensor": codec.encode(torch.from_numpy(image).permute(2, 0, 1)),
        "pixels": codec.decode(blob, out="numpy").tolist(),
        "tensor": codec.decode(blob, out="tensor").tolist(),
        "on device": codec.decode_tensor([blob, blob]).pixels.tolist(),
        "latents": codec.latents(blob).tolist(),
    }
    if isinstance(codec.model, released.Model):
        done |= {
            "region": codec.decode(blob, region=(3, 5, 20, 21), out="numpy").tolist(),
            "fast": codec.decode(blob, precision="fast", out="numpy").tolist(),
            "lossless": codec.decode(codec.encode(image, lossless=True), out="numpy").tolist(),
            "batch": codec.encode_batch([image, image[:20]], 33, "latency"),
        }
    return done


@pytest.fixture(scope="module")
def image(photographs) -> np.ndarray:
    return photographs["chelsea"][:40, :56].copy()


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    return {name: zoo.SYSTEMS[name].model(*channels).state_dict() for name, channels in SYSTEMS.items()}


def check(load: Callable[[], Codec], image: np.ndarray) -> None:
    """A codec that is loaded before and used under other defaults, and one that is loaded under them too."""
    codec = load()
    expected = use(codec, image)
    for device, dtype in DEFAULTS:
        with defaults(device, dtype):
            found = {"loaded before": use(codec, image), "loaded there": use(load(), image)}
        for when, done in found.items():
            for name, value in done.items():
                assert value == expected[name], (device, dtype, when, name)


@pytest.mark.parametrize("backend", [None, "float32", "reference"])
def test_swift_under_other_defaults(backend, image):
    path = released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    check(lambda: Codec(released.read_model(path, backend)), image)


@pytest.mark.parametrize("name", SYSTEMS)
def test_codecs_of_the_zoo_under_other_defaults(name, states, image):
    check(lambda: fastcodec.from_compressai(states[name], name), image)


def test_conversion_to_integers_under_other_defaults(states, image):
    def load() -> Codec:
        name = "mbt2018-checkerboard"
        return fastcodec.integerize(fastcodec.from_compressai(states[name], name), [image, image[:30]])

    check(load, image)


def test_the_coder_under_other_defaults():
    tables = rans.gaussian_tables()
    generator = torch.Generator().manual_seed(1)
    sigmas = torch.rand(50, 6, generator=generator) * 4
    weights, means = torch.full((2, 50, 6), 0.5), torch.rand(2, 50, 6, generator=generator)
    symbols = torch.randint(-3, 4, (50, 6), generator=generator, dtype=torch.int16)

    def code() -> list[bytes]:
        indexes = rans.scale_indexes(sigmas).clamp(min=1)
        mixture = rans.quantise_mixtures(weights, means, torch.stack([sigmas, sigmas]))
        payloads = rans.encode([[rans.Pass(symbols, indexes, tables), rans.MixturePass(symbols, *mixture)]])
        decoder = rans.Decoder(payloads)
        assert torch.equal(decoder.decode([indexes], tables)[0], symbols)
        assert torch.equal(decoder.decode_mixtures([mixture])[0], symbols)
        decoder.finish()
        return payloads

    expected = code()
    for device, dtype in DEFAULTS:
        with defaults(device, dtype):
            assert code() == expected


def test_a_release_is_restored_for_training_under_other_defaults():
    path = released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    expected = export.restore(path).state_dict()
    for device, dtype in DEFAULTS[:2]:
        with defaults(device, dtype):
            found = export.restore(path).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_in_bfloat16_has_an_identity():
    torch.manual_seed(3)
    model = zoo.SYSTEMS["mbt2018-mean"].model(8, 12).bfloat16()
    assert len(Codec(model).identity) == 6


# ---- and of what no test runs


MAKERS = {"zeros", "empty", "ones", "full", "tensor", "linspace", "logspace", "eye", "rand", "randn", "as_tensor"}
INTEGERS = {"arange", "randint", "randperm"}  # int64 whatever the default dtype
#: Written for training, which is the caller's to place.
TRAINING = {"fastcodec/train.py", "fastcodec/models/swift/warm_start.py", "bench/studies/random_mask.py"}


def makers(tree: ast.AST, inside: str = "") -> Iterator[tuple[int, str, set[str], str]]:
    """Calls that make a tensor: line, function, what they name, and the function around them."""
    for node in ast.iter_child_nodes(tree):
        name = node.name if isinstance(node, ast.FunctionDef) else inside
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of, made = node.func.value, node.func.attr
            if isinstance(of, ast.Name) and of.id == "torch" and made in MAKERS | INTEGERS:
                yield node.lineno, made, {keyword.arg for keyword in node.keywords if keyword.arg}, name
        yield from makers(node, name)


def test_tensors_name_their_device_and_dtype():
    """But for modules' parameters, which are made on the default device and in the default dtype as PyTorch's own."""
    missing, seen = [], 0
    for folder in ("fastcodec", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            for line, made, named, inside in makers(ast.parse(path.read_text())):
                seen += 1
                wanted = {"device"} if made in INTEGERS else {"device", "dtype"}
                if where not in TRAINING and inside != "__init__" and wanted - named:
                    missing.append(f"{where}:{line}: torch.{made} names no {' or '.join(sorted(wanted - named))}")
    assert seen > 100
    assert missing == []
