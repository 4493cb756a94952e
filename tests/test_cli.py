"""The command line, end to end: what users run, what goes wrong for them, and that nothing is lost when it does."""

import errno
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from simulated_gpu import simulated_gpu

import fastcodec
from fastcodec import batch, images
from fastcodec.batch import Outcome, Task
from fastcodec.cli import batches, build_parser, history, main
from fastcodec.cli.report import Report, explain, size_text

NAMES = ("astronaut", "chelsea", "coffee")


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory) -> Path:
    """Three small photographs, one of them nested: read-only by agreement."""
    top = tmp_path_factory.mktemp("photos")
    (top / "nested").mkdir()
    for name, place in zip(NAMES, (top, top, top / "nested"), strict=True):
        Image.fromarray(photographs[name][100:196, 100:228]).save(place / f"{name}.png")
    (top / "notes.txt").write_text("no image")
    (top / ".hidden.png").write_bytes(b"")
    return top


@pytest.fixture(scope="module")
def coded(folder, tmp_path_factory) -> Path:
    """The same, compressed by the command line."""
    out = tmp_path_factory.mktemp("coded")
    assert main(["compress", str(folder), "-o", str(out), "--recursive"]) == 0
    return out


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def start(*arguments, program=("-m", "fastcodec"), **options) -> subprocess.Popen:
    command = [sys.executable, "-P", *program, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell's background jobs ignore interrupts, and what they start inherits that.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(command, **{**pipes, **heard, **options})


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def files(folder: Path) -> set[str]:
    """All but the records of what files were made from."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != history.NAME)
    return {str(path.relative_to(folder)) for path in found}


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# ---- the ordinary way


def test_there_and_back(folder, coded, tmp_path, capsys):
    assert files(coded) == {"astronaut.fic", "chelsea.fic", "nested/coffee.fic"}
    assert run("verify", coded, "--recursive") == 0
    assert "chelsea.fic: sound" in capsys.readouterr().out
    assert run("decompress", coded, "-o", tmp_path / "back", "--recursive") == 0
    assert files(tmp_path / "back") == {"astronaut.png", "chelsea.png", "nested/coffee.png"}
    for name in files(tmp_path / "back"):
        original, decoded = (np.asarray(Image.open(top / name)).astype(float) for top in (folder, tmp_path / "back"))
        assert -10 * np.log10(np.mean((original - decoded) ** 2) / 255**2) > 24
    captured = capsys.readouterr()
    assert "3 files: 3 decompressed" in captured.err
    assert "bpp" in captured.err
    assert len(captured.out.splitlines()) == 3


def test_what_is_written_is_what_the_api_writes(folder, coded, tmp_path):
    codec = fastcodec.Codec.load("swift")
    assert (coded / "chelsea.fic").read_bytes() == codec.encode(Image.open(folder / "chelsea.png"), quality=60)
    assert run("decompress", coded / "chelsea.fic", "-o", tmp_path) == 0
    decoded = codec.decode((coded / "chelsea.fic").read_bytes(), out="numpy")
    assert (np.asarray(Image.open(tmp_path / "chelsea.png")) == decoded).all()


def test_json_has_an_object_a_file(folder, tmp_path, capsys):
    assert run("compress", folder, folder / "missing.png", "-o", tmp_path, "--json", "--quality", 40) == 1
    captured = capsys.readouterr()
    records = {Path(record["file"]).name: record for record in json_lines(captured.out)}
    assert set(records) == {"astronaut.png", "chelsea.png", "missing.png"}
    good = records["chelsea.png"]
    size = (tmp_path / "chelsea.fic").stat().st_size
    assert good["output"] == str(tmp_path / "chelsea.fic")
    assert (good["status"], good["width"], good["height"], good["bytes"], good["quality"]) == (
        "done",
        128,
        96,
        size,
        40,
    )
    assert good["bpp"] == pytest.approx(8 * size / (128 * 96), abs=1e-4)
    assert 0 < good["estimated_bits"] < 8 * size
    assert good["seconds"] > 0
    assert good["notices"] == []
    bad = records["missing.png"]
    assert (bad["status"], bad["error"], bad["message"]) == ("failed", "ImageError", "no such file or folder")
    assert captured.err == f"fastcodec: {folder / 'missing.png'}: no such file or folder\n"


def test_info(coded, tmp_path, capsys):
    assert run("info", coded / "chelsea.fic") == 0
    text = capsys.readouterr().out
    assert "128 x 96, RGB" in text
    assert "portable" in text
    assert run("info", coded / "chelsea.fic", coded / "astronaut.fic") == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3
    assert table[0].split()[:3] == ["file", "width", "height"]
    (tmp_path / "x.fic").write_text("text")
    assert run("info", "--json", coded / "chelsea.fic", tmp_path, tmp_path / "no", tmp_path / "x.fic") == 1
    captured = capsys.readouterr()
    good, *bad = json_lines(captured.out)
    assert (good["width"], good["quality"], good["tiles"], good["portable"]) == (128, 60, 1, True)
    assert [record["error"] for record in bad] == ["ImageError", "FileNotFoundError", "NotAFicFileError"]
    assert len(captured.err.splitlines()) == 3


def test_info_shows_metadata_and_resolution(tmp_path, capsys):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", dpi=(300, 150), xmp=b"<x/>")
    assert run("compress", tmp_path / "a.jpg", "-o", tmp_path / "a.fic", "--lossless") == 0
    capsys.readouterr()
    assert run("info", tmp_path / "a.fic") == 0
    text = capsys.readouterr().out
    assert "ICC profile none, EXIF 66 bytes, XMP 4 bytes" in text
    assert "300 x 150" in text
    assert run("info", "--json", tmp_path / "a.fic") == 0
    (record,) = json_lines(capsys.readouterr().out)
    assert (record["xmp_bytes"], record["exif_bytes"], record["dpi"], record["version"]) == (4, 66, [300, 150], 3)


def test_what_a_format_has_no_place_for_is_said(tmp_path, capsys):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", dpi=(300, 150), xmp=b"<x/>")
    assert run("compress", tmp_path / "a.jpg", "-o", tmp_path / "a.fic", "--lossless") == 0
    capsys.readouterr()
    assert run("decompress", tmp_path / "a.fic", "-o", tmp_path / "a.ppm") == 0
    captured = capsys.readouterr()
    assert "note: PPM has no place for the EXIF: left out" in captured.err
    assert "note: PPM has no place for the XMP: left out" in captured.err


def graphic(height: int, width: int) -> np.ndarray:
    """Flat colours and sharp edges, which lossless coding serves best."""
    pixels = np.full((height, width, 3), (240, 240, 250), np.uint8)
    pixels[::9] = (0, 0, 160)
    pixels[height // 3 :, width // 2 :] = (255, 0, 0)
    return pixels


def test_lossless_files_are_bit_exact_and_say_so(folder, tmp_path, capsys):
    assert run("compress", folder, "-o", tmp_path / "fic", "--recursive", "--lossless") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(", lossless, " in line for line in lines)
    assert run("decompress", tmp_path / "fic", "-o", tmp_path / "back", "--recursive") == 0
    for name in files(tmp_path / "back"):
        assert (np.asarray(Image.open(tmp_path / "back" / name)) == np.asarray(Image.open(folder / name))).all()
    capsys.readouterr()
    assert run("info", tmp_path / "fic" / "chelsea.fic") == 0
    assert "1 tile, lossless" in capsys.readouterr().out


def test_tiles_of_each_kind_are_counted(folder, tmp_path, capsys):
    photo = np.tile(np.asarray(Image.open(folder / "chelsea.png")), (1, 8, 1))
    Image.fromarray(np.concatenate([photo, graphic(96, 1024)], axis=1)).save(tmp_path / "mixed.png")
    assert run("compress", tmp_path / "mixed.png", "-o", tmp_path, "-q", 40) == 0
    assert "quality 40, 1 of 2 tiles lossless" in capsys.readouterr().out
    mixed = tmp_path / "mixed.fic"
    assert run("info", mixed) == 0
    assert "2 tiles, 1 of them lossless" in capsys.readouterr().out
    assert run("info", mixed, mixed) == 0
    head, row, _ = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (row[head.index("tiles")], row[head.index("lossless_tiles")]) == ("2", "1")
    for command in (("info", mixed), ("verify", mixed), ("decompress", mixed, "-o", tmp_path / "out/")):
        assert run(*command, "--json") == 0
        (record,) = json_lines(capsys.readouterr().out)
        assert (record["tiles"], record["lossless_tiles"], record["quality"]) == (2, 1, 40)


def test_a_lossy_file_is_not_taken_for_a_lossless_one(folder, tmp_path, capsys):
    source, target = folder / "chelsea.png", tmp_path / "chelsea.fic"
    assert run("compress", source, "-o", target, "-q", 100) == 0
    before = target.read_bytes()
    assert run("compress", source, "-o", target, "--lossless") == 1
    assert "exists already, at quality 100; see --overwrite" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert run("compress", source, "-o", tmp_path, "--overwrite", "-q", 100) == 0
    assert run("compress", source, "-o", tmp_path, "--lossless") == 0
    assert "made anew: it was made with preset size, quality 100\n" in capsys.readouterr().out
    assert (np.asarray(fastcodec.Codec.load().decode(target.read_bytes())) == np.asarray(Image.open(source))).all()
    assert run("compress", source, "-o", tmp_path, "--lossless") == 0
    assert capsys.readouterr().out.endswith("skipped, exists already\n")


@pytest.mark.parametrize("options", [(), ("--lossless",)])
def test_odd_inputs_of_a_new_user(options, folder, tmp_path, capsys):
    """Each fails by its name, alone, and what is sound is done."""
    whole = (folder / "chelsea.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.png").mkdir()
    for name, size in (("one", (1, 1)), ("row", (70, 1))):
        Image.new("RGB", size, (255, 0, 0)).save(tmp_path / f"{name}.png")
    names = [tmp_path / f"{name}.png" for name in ("missing", "cut", "folder", "one", "row")]
    assert run("compress", *names, "-o", tmp_path / "out", *options, "--json") == 1
    captured = capsys.readouterr()
    assert {Path(record["file"]).name: record.get("message") for record in json_lines(captured.out)} == {
        "missing.png": "no such file or folder",
        "cut.png": "image file is truncated",
        "folder.png": "no image in this folder (--recursive looks into nested folders)",
        "one.png": None,
        "row.png": None,
    }
    assert all(line.startswith(f"fastcodec: {tmp_path}/") for line in captured.err.splitlines())
    assert files(tmp_path / "out") == {"one.fic", "row.fic"}
    assert (tmp_path / "cut.png").read_bytes() == whole[: len(whole) // 2]
    assert run("decompress", tmp_path / "out", "-o", tmp_path / "back") == 0
    assert Image.open(tmp_path / "back" / "one.png").getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(tmp_path / "back" / "row.png").size == (70, 1)


def test_a_damaged_lossless_tile_is_named(folder, tmp_path, capsys):
    assert run("compress", folder / "chelsea.png", "-o", tmp_path, "--lossless") == 0
    whole = (tmp_path / "chelsea.fic").read_bytes()
    for name, data in (("cut", whole[:-50]), ("flipped", whole[:-50] + bytes([whole[-50] ^ 1]) + whole[-49:])):
        (tmp_path / f"{name}.fic").write_bytes(data)
        for command in (("verify",), ("decompress", "-o", tmp_path / "out")):
            assert run(*command, tmp_path / f"{name}.fic") == 1
            assert f"{name}.fic: " in (text := capsys.readouterr().err)
            assert "tile 0 is damaged" in text or name == "cut"
    assert not (tmp_path / "out").exists()


def test_size_targets(folder, tmp_path, capsys):
    source = folder / "chelsea.png"
    assert run("compress", source, "-o", tmp_path / "a.fic", "--target-bytes", 1200) == 0
    assert run("compress", source, "-o", tmp_path / "b.fic", "--target-bpp", 0.8) == 0
    assert 900 < (tmp_path / "a.fic").stat().st_size <= 1200
    assert 900 < (tmp_path / "b.fic").stat().st_size <= 0.8 * 128 * 96 / 8
    assert run("compress", source, "-o", tmp_path / "c.fic", "--target-bytes", 5) == 1
    assert "chelsea.png: 5 bytes are too few" in capsys.readouterr().err
    assert not (tmp_path / "c.fic").exists()


def test_presets_and_jobs(folder, tmp_path):
    for name, options in {"one": ("--jobs", 1), "three": ("--jobs", 3), "latency": ("--preset", "latency")}.items():
        assert run("compress", folder, "-o", tmp_path / name, "--recursive", *options) == 0
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()
    assert files(tmp_path / "latency") == files(tmp_path / "one")


def test_decompress_options(coded, tmp_path, capsys):
    source = coded / "chelsea.fic"
    assert run("decompress", source, "-o", tmp_path / "out", "--format", "webp") == 0
    assert run("decompress", source, "-o", tmp_path / "fast.png", "--precision", "fast") == 0
    assert run("decompress", source, "-o", tmp_path / "part.ppm", "--region", "10,20,50,40", "--json") == 0
    (record,) = json_lines(capsys.readouterr().out.splitlines()[-1])
    assert (record["width"], record["height"]) == (50, 40)
    whole = np.asarray(Image.open(tmp_path / "out" / "chelsea.webp").convert("RGB")).astype(int)
    part = np.asarray(Image.open(tmp_path / "part.ppm")).astype(int)
    assert np.abs(part - whole[20:60, 10:60]).max() <= 1
    assert np.abs(np.asarray(Image.open(tmp_path / "fast.png")).astype(int) - whole).mean() < 1
    assert run("decompress", source, "-o", tmp_path / "x.png", "--region", "100,0,50,40") == 1
    assert "chelsea.fic: region (100, 0, 50, 40)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def transparent(photographs, tmp_path_factory) -> Path:
    """Files of a colour and of a gray picture whose alpha has every value, with the PNG that they decode to."""
    out = tmp_path_factory.mktemp("transparent")
    image = Image.fromarray(photographs["chelsea"][:64, :64])
    image.putalpha(Image.fromarray(np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)))
    image.save(out / "colour.png")
    image.convert("LA").save(out / "gray.png")
    assert run("compress", out, "-o", out / "fic") == 0
    assert run("decompress", out / "fic", "-o", out / "back") == 0
    return out


@pytest.mark.parametrize(
    "name, text, colour",
    [
        ("colour", "white", (255, 255, 255)),
        ("colour", "#0a80ff", (10, 128, 255)),
        ("gray", "rgb(7, 7, 7)", (7, 7, 7)),
        ("gray", "navy", (0, 0, 128)),
    ],
)
def test_pictures_with_alpha_come_on_a_background(name, text, colour, transparent, tmp_path):
    source, back = transparent / "fic" / f"{name}.fic", Image.open(transparent / "back" / f"{name}.png")
    image = np.asarray(back.convert("RGBA")).astype(float)
    alpha = image[..., 3:] / 255
    expected = np.floor(alpha * image[..., :3] + (1 - alpha) * colour + 0.5)
    for suffix, error, options in (("ppm", 0, ("RGB",)), ("png", 0, ("RGB", "L")), ("jpg", 12, ("RGB", "L"))):
        target = tmp_path / f"a.{suffix}"
        if suffix == "ppm" and name == "gray":
            target, options = tmp_path / "a.pnm", ("RGB", "L")
        assert run("decompress", source, "-o", target, "--background", text) == 0
        made = Image.open(target)
        assert made.mode in options
        assert (made.mode == "L") is (name == "gray" and len(set(colour)) == 1)
        assert np.abs(np.asarray(made.convert("RGB")) - expected).max() <= error


def test_pictures_without_alpha_need_no_background(coded, tmp_path):
    for options in ((), ("--background", "red")):
        assert run("decompress", coded / "chelsea.fic", "-o", tmp_path / "a.ppm", *options) == 0


def test_formats_without_alpha_are_named_before_any_work(transparent, tmp_path, capsys, monkeypatch):
    """With the option that helps, and formats that do keep alpha."""
    with monkeypatch.context() as context:
        context.setattr("fastcodec.Codec.decode", no_coding)
        for suffix in ("jpg", "jpeg", "bmp", "ppm", "gif", "pcx"):
            for name in ("colour", "gray"):
                assert run("decompress", transparent / "fic" / f"{name}.fic", "-o", tmp_path / f"a.{suffix}") == 1
                error = capsys.readouterr().err
                assert f"{name}.fic: it has alpha, which " in error
                assert "--background COLOR" in error
                assert "png, webp, avif, tif, jp2, tga keep it" in error
    for suffix in images.ALPHA_SUFFIXES:
        for name in ("colour", "gray"):
            target = tmp_path / f"{name}{suffix}"
            assert run("decompress", transparent / "fic" / f"{name}.fic", "-o", target) == 0
            alpha = Image.open(target).convert("RGBA").getchannel("A")
            kept = Image.open(transparent / "back" / f"{name}.png").getchannel("A")
            assert np.abs(np.asarray(alpha).astype(int) - np.asarray(kept)).max() <= (suffix == ".avif") * 8


def test_notices_reach_the_user(photographs, tmp_path, capsys):
    Image.fromarray(photographs["chelsea"][:32, :32]).convert("CMYK").save(tmp_path / "print.jpg")
    assert run("compress", tmp_path / "print.jpg", "-o", tmp_path / "out/") == 0
    assert "print.jpg: note: CMYK input converted to RGB" in capsys.readouterr().err


# ---- names


def plan(inputs, out, **options) -> tuple[dict[str, str], dict[str, str]]:
    options = {"suffix": ".fic", "wanted": {".png", ".jpg"}, **options}
    tasks, failures = batch.plan(inputs, out, **options)
    return (
        {str(task.source): str(task.target) for task in tasks},
        {str(failure.task.source): str(failure.error) for failure in failures},
    )


def test_names_neither_break_lines_nor_steer_the_terminal(coded, tmp_path, capsys):
    name, shown = "two\nlines\x1b[31m\u202f.fic", "two\\nlines\\x1b[31m\u202f.fic"
    shutil.copy(coded / "chelsea.fic", tmp_path / name)
    (tmp_path / ("bad" + name)).write_bytes(b"no image")
    assert run("verify", tmp_path) == 1
    assert run("info", tmp_path / name) == 0
    assert run("info", tmp_path / name, tmp_path / name) == 0
    out, errors = capsys.readouterr()
    assert len([line for line in out.splitlines() if line.startswith(f"{tmp_path}/{shown}")]) == 4
    assert f"fastcodec: {tmp_path}/bad{shown}: not a .fic file\n" in errors
    assert run("verify", tmp_path / name, "--json") == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(tmp_path / name)


def test_names_that_are_not_unicode(folder, tmp_path):
    source = os.fsencode(tmp_path) + b"/\xff.png"
    os.link(folder / "chelsea.png", source)
    process = start("compress", os.fsdecode(source), "-o", tmp_path / "out/", errors="surrogateescape")
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert os.path.exists(os.fsencode(tmp_path) + b"/out/\xff.fic")
    assert os.fsencode(out).count(b"\xff") == 2


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("p/a.png", "p/b.JPG", "p/n/a.png", "p/n/deep/c.png", "q/a.png", "p/.d/x.png", "p/._a.png", "p/t.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_folders_are_mirrored(tree):
    assert plan([Path("p")], Path("o")) == ({"p/a.png": "o/a.fic", "p/b.JPG": "o/b.fic"}, {})
    tasks, failures = plan([Path("p")], Path("o"), recursive=True)
    assert tasks["p/n/a.png"] == "o/n/a.fic"
    assert tasks["p/n/deep/c.png"] == "o/n/deep/c.fic"
    assert len(tasks) == 4
    assert not failures


def test_the_output_folder_is_not_searched(tree):
    (tree / "p/out").mkdir()
    (tree / "p/out/a.png").write_bytes(b"x")
    tasks, _ = plan([Path("p")], Path("p/out"), recursive=True)
    assert "p/out/a.png" not in tasks
    assert len(tasks) == 4


def test_equal_stems_keep_their_whole_names(tree):
    (tree / "p/a.jpg").write_bytes(b"x")
    tasks, failures = plan([Path("p")], Path("o"))
    assert tasks == {"p/a.jpg": "o/a.jpg.fic", "p/a.png": "o/a.png.fic", "p/b.JPG": "o/b.fic"}
    assert not failures


def test_conflicts_fail_instead_of_overwriting(tree):
    tasks, failures = plan([Path("p/a.png"), Path("q/a.png")], Path("o"))
    assert tasks == {"p/a.png": "o/a.png.fic"}
    assert "p/a.png" in failures["q/a.png"]
    tasks, failures = plan([Path("p/a.png")], Path("p/a.png"), out_is_file=True)
    assert not tasks
    assert "overwrite an input" in failures["p/a.png"]
    (tree / "link.png").symlink_to("p/a.png")
    _, failures = plan([Path("p/a.png")], Path("link.png"), out_is_file=True)
    assert "overwrite an input" in failures["p/a.png"]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    "names",
    [
        ("photo.jpg", "Photo.png", "PHOTO.webp"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg", "cafe\N{COMBINING ACUTE ACCENT}.png"),
        ("stra\N{LATIN SMALL LETTER SHARP S}e.jpg", "STRASSE.png"),
    ],
)
def test_names_that_only_some_systems_tell_apart_get_distinct_outputs(names, tree):
    touch(*(tree / "c" / name for name in names))
    tasks, failures = plan([Path("c")], Path("o"), wanted={".jpg", ".png", ".webp"})
    assert tasks == {f"c/{name}": f"o/{name}.fic" for name in names}
    assert not failures
    assert len({batch.folded(target) for target in tasks.values()}) == len(names)
    assert plan([Path("c") / name for name in names], Path("o"))[0] == tasks


def test_sources_of_one_name_but_for_case_need_a_system_that_tells_them_apart(tree, monkeypatch):
    """Two files photo.png, Photo.png or folders A, a: their outputs' names differ as theirs do."""
    touch(tree / "c/photo.png", tree / "c/Photo.png", tree / "c/A/x.png", tree / "c/a/x.png")
    wanted = {
        "c/photo.png": "o/photo.fic",
        "c/Photo.png": "o/Photo.fic",
        "c/A/x.png": "o/A/x.fic",
        "c/a/x.png": "o/a/x.fic",
    }
    if os.path.exists(tree / "C"):
        pytest.skip("this file system does not tell them apart")
    assert plan([Path("c")], Path("o"), recursive=True) == (wanted, {})
    assert not list(tree.glob("fastcodec*"))
    monkeypatch.setattr(batch, "_tells_alike_apart", lambda _: False)  # such a file system is not to be had here
    tasks, failures = plan([Path("c")], Path("o"), recursive=True)
    assert tasks == {"c/Photo.png": "o/Photo.fic", "c/A/x.png": "o/A/x.fic"}
    assert failures == {
        "c/photo.png": "its output o/photo.fic is that of c/Photo.png too: give them different folders",
        "c/a/x.png": "its output o/a/x.fic is that of c/A/x.png too: give them different folders",
    }


def test_an_output_that_would_be_one_with_a_neighbour_elsewhere_fails(folder, tmp_path, capsys):
    """What lies in the folder counts too, unless it is of a source that is as hard to tell from this one."""
    for name in ("photo.png", "Photo.PNG", "PHOTO.webp"):
        Image.open(folder / "chelsea.png").crop((0, 0, 16, 16 + len(files(tmp_path)))).save(tmp_path / name)
    if len(files(tmp_path)) < 3:
        pytest.skip("this file system does not tell them apart")
    out = tmp_path / "out"
    assert run("compress", tmp_path / "photo.png", "-o", out) == 0
    assert run("compress", tmp_path / "PHOTO.webp", "-o", out) == 1
    error = capsys.readouterr().err
    assert f"PHOTO.webp: its output {out}/PHOTO.fic would be one file with photo.fic where capitals do not" in error
    assert run("compress", tmp_path / "Photo.PNG", "-o", out) == 0
    assert files(out) == {"photo.fic", "Photo.fic"}
    assert run("compress", tmp_path / "PHOTO.webp", "-o", out, "--overwrite") == 0


def test_names_at_the_limit_work_to_the_end(folder, tmp_path):
    """255 bytes, some of them in characters of three."""
    for stem in ("x" * 251, "\N{EURO SIGN}" * 83 + "xx"):
        source = tmp_path / "in" / f"{stem}.png"
        source.parent.mkdir(exist_ok=True)
        os.link(folder / "chelsea.png", source)
        assert run("compress", source, "-o", tmp_path / "out/") == 0
        assert run("decompress", tmp_path / "out" / f"{stem}.fic", "-o", tmp_path / "back/") == 0
        assert f"{stem}.png" in files(tmp_path / "back")


def test_outputs_whose_names_would_be_too_long_fail_at_once(folder, tmp_path, capsys, monkeypatch):
    long = tmp_path / f"{'x' * 252}.im"
    os.link(folder / "chelsea.png", long)
    monkeypatch.setattr("fastcodec.cli.batches.read_picture", no_coding)
    for source, out in (
        (long, tmp_path / "new" / "out/"),
        (folder / "chelsea.png", tmp_path / f"{'y' * 252}.fic"),
        (folder / "chelsea.png", f"{tmp_path}/new/{'y' * 256}/"),
    ):
        assert run("compress", source, "-o", out) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"fastcodec: {source}: its output's name is too long for the file system: ") or (
            error == f"fastcodec: {out}: file name too long\n"  # as the command line itself has it
        )
    assert files(tmp_path) == {long.name}
    assert plan([long], tmp_path, suffix=".f")[1] == {}


def test_a_file_given_twice_is_done_once(tree):
    assert len(plan([Path("p"), Path("p/a.png"), Path("p/../p/a.png")], Path("o"))[0]) == 2


def test_empty_and_missing_inputs(tree):
    (tree / "empty").mkdir()
    tasks, failures = plan([Path("empty"), Path("no.png"), Path("q")], Path("o"))
    assert tasks == {"q/a.png": "o/a.fic"}
    assert "no image in this folder" in failures["empty"]
    assert "--recursive" in failures["empty"]
    assert "no such file" in failures["no.png"]
    assert "no .fic file" in plan([Path("p")], None, wanted={".fic"})[1]["p"]


def test_inputs_that_cannot_be_looked_at_fail_alone(tree):
    long = "x" * 300 + ".png"
    tasks, failures = plan([Path(long), Path("q/a.png")], Path("o"))
    assert tasks == {"q/a.png": "o/a.fic"}
    assert "File name too long" in failures[long]


def test_where_one_file_goes(folder, tmp_path):
    source = folder / "chelsea.png"
    (tmp_path / "there.is").mkdir()
    for out, expected in (
        ("file.fic", "file.fic"),
        ("there.is", "there.is/chelsea.fic"),
        ("dotted.folder/", "dotted.folder/chelsea.fic"),
        ("plain", "plain/chelsea.fic"),
        ("new/file.fic", "new/file.fic"),
    ):
        assert run("compress", source, "-o", f"{tmp_path}/{out}", "-q", 1) == 0
        assert (tmp_path / expected).is_file()


# ---- what is there already


@pytest.fixture
def photos(folder, tmp_path) -> Path:
    """`folder`, to be changed."""
    return shutil.copytree(folder, tmp_path / "photos")


def no_coding(*_, **__):
    raise AssertionError("coded")


def skipped(captured) -> list[bool]:
    """Of the records of `--json`, in the order of their files."""
    return [r["status"] == "skipped" for r in sorted(json_lines(captured.out), key=lambda record: record["file"])]


def test_done_files_are_skipped(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("compress", photos, "-o", out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    assert run("compress", photos, "-o", out) == 0
    captured = capsys.readouterr()
    assert "0 compressed, 2 skipped" in captured.err
    assert captured.out.count("skipped, exists already\n") == 2
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert files(out) == {"astronaut.fic", "chelsea.fic"}


def test_a_source_that_moved_or_was_touched_is_still_done(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("compress", photos, "-o", out) == 0
    os.utime(photos / "chelsea.png", (2e9, 2e9))
    capsys.readouterr()
    for place in (photos, tmp_path / "elsewhere"):
        if place != photos:
            photos.rename(place)
        assert run("compress", place, "-o", out, "--json") == 0
        assert skipped(capsys.readouterr()) == [True, True]


def test_going_on_reads_no_picture(photos, tmp_path, capsys, monkeypatch):
    """What is done is known by names, sizes and times, also after a source was touched once."""
    out, back = tmp_path / "out", tmp_path / "back"
    assert run("compress", photos, "-o", out) == 0
    assert run("decompress", out, "-o", back) == 0
    os.utime(photos / "chelsea.png", (2e9, 2e9))
    assert run("compress", photos, "-o", out) == 0
    monkeypatch.setattr("fastcodec.cli.history.hashlib.file_digest", no_coding)
    monkeypatch.setattr("fastcodec.images.Image.open", no_coding)
    monkeypatch.setattr("fastcodec.Codec.decode", no_coding)
    assert run("compress", photos, "-o", out) == 0
    assert run("decompress", out, "-o", back) == 0


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_another_source_of_the_same_stem_never_passes_for_done(command, photographs, tmp_path, capsys):
    """Nor if its size, its time and even its name are the same."""
    for place, name in (("s1", "chelsea"), ("s2", "astronaut")):
        (tmp_path / place).mkdir()
        Image.fromarray(photographs[name][:64, :64]).save(tmp_path / place / "a.ppm")
        os.utime(tmp_path / place / "a.ppm", (1e9, 1e9))
    if command == "decompress":
        for place in ("s1", "s2"):
            assert run("compress", tmp_path / place / "a.ppm", "-o", tmp_path / place) == 0
            os.truncate(tmp_path / place / "a.ppm", 0)
    end, made = (".ppm", ".fic") if command == "compress" else (".fic", ".png")
    one, other = (tmp_path / place / f"a{end}" for place in ("s1", "s2"))
    out = tmp_path / "out"
    assert run(command, one, "-o", out) == 0
    before = (out / f"a{made}").read_bytes()
    capsys.readouterr()
    for _ in range(2):
        assert run(command, other, "-o", out) == 1
        captured = capsys.readouterr()
        assert f"a{made} exists already, made from {out}/../s1/a{end}" in captured.err
        assert "--overwrite" in captured.err
        assert (out / f"a{made}").read_bytes() == before
    assert run(command, one, "-o", out, "--json") == 0
    assert skipped(capsys.readouterr()) == [True]
    (out / history.NAME).unlink()  # nothing is known any more
    assert run(command, other, "-o", out) == 1
    assert "exists already" in capsys.readouterr().err
    assert (out / f"a{made}").read_bytes() == before
    assert run(command, other, "-o", out, "--overwrite") == 0
    assert (out / f"a{made}").read_bytes() != before
    assert run(command, one, "-o", out) == 1


def test_what_changed_is_made_anew_and_said(photos, tmp_path, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    assert run("compress", photos, "-o", out) == 0
    assert run("decompress", out, "-o", back) == 0
    capsys.readouterr()
    assert run("compress", photos, "-o", out, "-q", 30) == 0
    captured = capsys.readouterr()
    assert captured.out.count("made anew: it was made with quality 60\n") == 2
    assert "2 compressed (2 anew, whose sources or settings had changed)" in captured.err
    assert fastcodec.info(out / "chelsea.fic").quality == 30
    assert run("decompress", out, "-o", back, "--json") == 0
    assert {record["anew"] for record in json_lines(capsys.readouterr().out)} == {"its source has changed"}
    shutil.copy(photos / "chelsea.png", photos / "astronaut.png")
    assert run("compress", photos, "-o", out, "-q", 30, "--json") == 0
    records = {Path(record["file"]).stem: record for record in json_lines(capsys.readouterr().out)}
    assert records["astronaut"]["anew"] == "its source has changed"
    assert records["chelsea"]["status"] == "skipped"
    assert (out / "astronaut.fic").read_bytes() == (out / "chelsea.fic").read_bytes()


@pytest.mark.parametrize(
    "options, others",
    [
        (("-q", 50), ("-q", 51)),
        (("-q", 50), ("-q", 50, "--preset", "latency")),
        (("--target-bytes", 400), ("--target-bytes", 401)),
        (("--target-bytes", 400), ("--target-bpp", 3)),
        (("--lossless",), ()),
    ],
)
def test_every_setting_is_noticed(options, others, folder, tmp_path, capsys):
    source = tmp_path / "small.png"
    Image.open(folder / "chelsea.png").crop((0, 0, 32, 32)).save(source)
    for settings, expected in ((options, False), (options, True), (others, False), (others, True)):
        assert run("compress", source, "-o", tmp_path, *settings, "--json") == 0
        assert skipped(capsys.readouterr()) == [expected]


def test_every_setting_of_decoding_is_noticed(coded, tmp_path, capsys):
    source = coded / "chelsea.fic"
    for settings in (
        (),
        ("--precision", "fast"),
        ("--region", "0,0,20,20"),
        ("--region", "0,0,20,21"),
        ("--background", "red"),
    ):
        for expected in (False, True):
            assert run("decompress", source, "-o", tmp_path, *settings, "--json") == 0
            assert skipped(capsys.readouterr()) == [expected]
    assert run("decompress", source, "-o", tmp_path, "--format", "webp", "--json") == 0
    assert skipped(capsys.readouterr()) == [False]
    assert files(tmp_path) == {"chelsea.png", "chelsea.webp"}


def test_another_model_is_noticed(folder, tmp_path, capsys, monkeypatch):
    source = folder / "chelsea.png"
    assert run("compress", source, "-o", tmp_path) == 0
    record = tmp_path / history.NAME
    identity = fastcodec.info(tmp_path / "chelsea.fic").model
    record.write_text(record.read_text().replace(identity, "ab" * 6))
    capsys.readouterr()
    assert run("compress", source, "-o", tmp_path) == 0
    assert f"made anew: it was made with model {'ab' * 6}\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["compress", "decompress"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: None,
        lambda data: b"",
        lambda data: data[: len(data) // 2],  # the last line is cut off
        lambda data: b"\xff\0{}[]\n" + data[7:],
        lambda data: b'{"output": "chelsea.fic", "bytes": 3}\n[1]\n"x"\n' + b"[" * 100_000,
    ],
)
def test_a_damaged_record_costs_time_and_nothing_else(command, damage, folder, tmp_path, capsys):
    source, out = folder / "chelsea.png", tmp_path / "out"
    if command == "decompress":
        assert run("compress", source, "-o", tmp_path) == 0
        source = tmp_path / "chelsea.fic"
    assert run(command, source, "-o", out) == 0
    (target,) = files(out)
    before, data = (out / target).read_bytes(), damage((out / history.NAME).read_bytes())
    (out / history.NAME).unlink()
    if data is not None:
        (out / history.NAME).write_bytes(data)
    capsys.readouterr()
    for expected in (False, True):  # made again and found to be the same, which is known from then on
        assert run(command, source, "-o", out, "--json") == 0
        assert skipped(capsys.readouterr()) == [expected]
    assert (out / target).read_bytes() == before
    assert files(out) == {target}


def test_a_record_that_cannot_be_written_is_no_failure(folder, tmp_path, capsys):
    (tmp_path / history.NAME).mkdir()
    for _ in range(2):
        assert run("compress", folder / "chelsea.png", "-o", tmp_path) == 0
        captured = capsys.readouterr()
        assert f"note: {tmp_path / history.NAME}: is a directory: the same command will have to" in captured.err
    target = tmp_path / "elsewhere"
    (tmp_path / history.NAME).rmdir()
    (tmp_path / history.NAME).symlink_to(target)
    assert run("compress", folder / "chelsea.png", "-o", tmp_path) == 0
    assert not target.exists()


def test_a_pipe_in_a_sources_place_is_not_waited_for(photos, tmp_path, capsys):
    source = photos / "chelsea.png"
    assert run("compress", source, "-o", tmp_path / "out") == 0
    source.unlink()
    os.mkfifo(source)
    assert run("compress", source, "-o", tmp_path / "out") == 1
    assert "chelsea.png: is not a regular file" in capsys.readouterr().err


def test_records_do_not_grow_for_ever(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(history, "_STALE", 0)
    for _ in range(6):
        assert run("compress", folder / "chelsea.png", "-o", tmp_path, "--overwrite") == 0
    assert len((tmp_path / history.NAME).read_text().splitlines()) <= 3
    capsys.readouterr()
    assert run("compress", folder / "chelsea.png", "-o", tmp_path, "--json") == 0
    assert skipped(capsys.readouterr()) == [True]


def test_two_runs_into_one_folder(photographs, tmp_path):
    """Of one source both succeed; of two sources of one name, one does, and the other says so."""
    for place, name in (("s1", "chelsea"), ("s2", "astronaut")):
        (tmp_path / place).mkdir()
        for i in range(6):
            Image.fromarray(photographs[name][16 * i :][:64, :64]).save(tmp_path / place / f"{i}.png")
    for one, other, codes in (("s1", "s1", {(0, 0)}), ("s1", "s2", {(0, 1), (1, 0), (1, 1)})):
        out = tmp_path / f"{one}-{other}"
        processes = [start("compress", tmp_path / place, "-o", out, "--json") for place in (one, other)]
        ends = [finish(process) for process in processes]
        assert tuple(code for code, *_ in ends) in codes
        records = [record for _, text, _ in ends for record in json_lines(text)]
        for i in range(6):
            made = [r for r in records if r["output"] == str(out / f"{i}.fic") and r["status"] == "done"]
            failed = [r for r in records if r["output"] == str(out / f"{i}.fic") and r["status"] == "failed"]
            if one != other:
                assert (len(made), len(failed)) == (1, 1)
                assert "exists already" in failed[0]["message"]
            else:
                assert made
                assert not failed
        assert run("compress", tmp_path / one, "-o", out, "--overwrite") == 0
        lines = (out / history.NAME).read_bytes().splitlines()
        assert all(json.loads(line)["output"] for line in lines)


def test_a_named_file_keeps_no_record(folder, tmp_path, capsys):
    """It is made again and compared: the same passes, another does not, and no file lies beside it."""
    target = tmp_path / "a.fic"
    for _ in range(2):
        assert run("compress", folder / "chelsea.png", "-o", target) == 0
        assert run("decompress", target, "-o", tmp_path / "a.png") == 0
    before = target.read_bytes(), (tmp_path / "a.png").read_bytes()
    assert run("compress", folder / "astronaut.png", "-o", target) == 1
    assert "a.fic exists already, and is not what would be written" in capsys.readouterr().err
    assert run("compress", folder / "chelsea.png", "-o", target, "-q", 61) == 1
    assert "a.fic exists already, at quality 60" in capsys.readouterr().err
    assert run("decompress", target, "-o", tmp_path / "a.png", "--region", "0,0,9,9") == 1
    assert before == (target.read_bytes(), (tmp_path / "a.png").read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == {"a.fic", "a.png"}


def test_half_files_are_replaced_and_foreign_ones_kept(folder, coded, tmp_path, capsys):
    source, target = folder / "chelsea.png", tmp_path / "chelsea.fic"
    whole = (coded / "chelsea.fic").read_bytes()
    for half in (whole[:-7], b""):
        target.write_bytes(half)
        assert run("compress", source, "-o", tmp_path) == 0
        assert target.read_bytes() == whole
    target.write_bytes(b"somebody's thesis")
    assert run("compress", source, "-o", tmp_path) == 1
    assert "chelsea.fic exists and is not ours to replace" in capsys.readouterr().err
    assert target.read_bytes() == b"somebody's thesis"
    assert run("compress", source, "-o", tmp_path, "--overwrite") == 0
    (tmp_path / history.NAME).unlink()
    Image.new("RGB", (30, 40)).save(tmp_path / "chelsea.png")
    assert run("compress", tmp_path / "chelsea.png", "-o", tmp_path) == 1
    assert "holds another image, of 128 x 96" in capsys.readouterr().err


def test_an_image_touched_up_by_hand_stays(coded, tmp_path, capsys):
    assert run("decompress", coded / "chelsea.fic", "-o", tmp_path) == 0
    (tmp_path / "chelsea.png").write_bytes(b"touched up by hand")
    assert run("decompress", coded / "chelsea.fic", "-o", tmp_path) == 1
    assert "chelsea.png exists already, and is not what would be written" in capsys.readouterr().err
    assert (tmp_path / "chelsea.png").read_bytes() == b"touched up by hand"
    assert run("decompress", coded / "chelsea.fic", "-o", tmp_path, "--overwrite") == 0
    assert Image.open(tmp_path / "chelsea.png").size == (128, 96)


# ---- bad input


def test_bad_images_fail_alone(folder, tmp_path, capsys):
    inputs = tmp_path / "in"
    shutil.copytree(folder, inputs)
    whole = (folder / "chelsea.png").read_bytes()
    (inputs / "cut.png").write_bytes(whole[: len(whole) // 2])
    (inputs / "empty.png").write_bytes(b"")
    (inputs / "text.jpg").write_text("hello")
    (inputs / "coded.png").write_bytes(b"\xf1FIC\x01")
    assert run("compress", inputs, "-o", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert files(tmp_path / "out") == {"astronaut.fic", "chelsea.fic"}
    errors = sorted(line for line in captured.err.splitlines() if line.startswith("fastcodec: "))
    assert [line.removeprefix(f"fastcodec: {inputs}/") for line in errors] == [
        "coded.png: a .fic file already",
        "cut.png: image file is truncated",
        "empty.png: the file is empty",
        "text.jpg: not an image of a known format",
    ]
    assert "2 compressed, 4 failed" in captured.err
    assert "Traceback" not in captured.err


def test_damaged_files_fail_alone(coded, tmp_path, capsys):
    inputs = tmp_path / "in"
    shutil.copytree(coded, inputs)
    whole = (coded / "chelsea.fic").read_bytes()
    (inputs / "cut.fic").write_bytes(whole[:-10])
    (inputs / "flipped.fic").write_bytes(whole[:-30] + bytes([whole[-30] ^ 4]) + whole[-29:])
    (inputs / "longer.fic").write_bytes(whole + b"x")
    (inputs / "future.fic").write_bytes(whole[:4] + b"\x63" + whole[5:])
    (inputs / "text.fic").write_text("hello")
    expected = {
        "cut.fic": "CorruptStreamError",
        "flipped.fic": "CorruptStreamError",
        "longer.fic": "CorruptStreamError",
        "future.fic": "UnsupportedVersionError",
        "text.fic": "NotAFicFileError",
    }
    for command in (("decompress", "-o", tmp_path / "out"), ("verify",)):
        assert run(*command, inputs, "--json") == 1
        captured = capsys.readouterr()
        records = json_lines(captured.out)
        assert {Path(r["file"]).name: r["error"] for r in records if "error" in r} == expected
        assert all(r["message"] and "\n" not in r["message"] for r in records if "error" in r)
        assert sorted(Path(r["file"]).name for r in records if "error" not in r) == ["astronaut.fic", "chelsea.fic"]
        assert len(captured.err.splitlines()) == len(expected)
    assert files(tmp_path / "out") == {"astronaut.png", "chelsea.png"}


def test_files_of_another_model_are_refused_by_name(coded, tmp_path, capsys):
    import zlib

    whole = (coded / "chelsea.fic").read_bytes()
    other = bytearray(whole)
    other[6:12] = b"\xab" * 6
    head = next(n for n in range(13, 40) if zlib.crc32(whole[:n]) == int.from_bytes(whole[n : n + 4], "little"))
    other[head : head + 4] = zlib.crc32(other[:head]).to_bytes(4, "little")
    (tmp_path / "other.fic").write_bytes(other)
    assert run("verify", tmp_path / "other.fic") == 1
    assert "other.fic: " in (text := capsys.readouterr().err)
    assert "ab" * 6 in text


def test_limits_can_be_set(folder, coded, tmp_path, capsys):
    assert run("compress", folder / "chelsea.png", "-o", tmp_path, "--max-pixels", 1000) == 1
    assert run("decompress", coded / "chelsea.fic", "-o", tmp_path, "--max-pixels", 1000) == 1
    assert run("info", coded / "chelsea.fic", "--max-pixels", 1000) == 1
    assert capsys.readouterr().err.count("exceed the limit of 1000") == 3


def test_places_that_cannot_be_written(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    assert run("compress", folder / "chelsea.png", "-o", tmp_path / "file" / "a.fic") == 1
    assert "file: is a file, and a folder is needed" in capsys.readouterr().err
    (tmp_path / "chelsea.fic").mkdir()
    assert run("compress", folder / "chelsea.png", "-o", tmp_path) == 1
    assert "is a directory" in capsys.readouterr().err

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "locked"))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere
    assert run("compress", folder / "chelsea.png", "-o", tmp_path / "locked/") == 1
    assert f"{tmp_path / 'locked'}: permission denied" in capsys.readouterr().err


def test_debugging_shows_the_traceback(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.png").write_text("x")
    for value, shown in (("1", True), ("0", False)):
        monkeypatch.setenv("FASTCODEC_DEBUG", value)
        assert run("compress", tmp_path / "a.png", "-o", tmp_path / "out/") == 1
        assert ("Traceback" in capsys.readouterr().err) is shown


# ---- usage


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["compress", "a.png"], "-o/--out"),
        (["compress", "-o", "x"], "INPUT"),
        (["compress", "a.png", "-o", "x", "-q", "0"], "1..100"),
        (["compress", "a.png", "-o", "x", "-q", "high"], "not an integer"),
        (["compress", "a.png", "-o", "x", "-q", "5", "--target-bytes", "5"], "not allowed with"),
        (["compress", "a.png", "-o", "x", "--target-bpp", "-1"], "positive"),
        (["compress", "a.png", "-o", "x", "--jobs", "0"], "1 or more"),
        (["decompress", "a.fic", "-o", "x", "--region", "1,2,3"], "X,Y,WIDTH,HEIGHT"),
        (["decompress", "a.fic", "-o", "x", "--region", "0,0,0,5"], "sides"),
        (["decompress", "a.fic", "-o", "x", "--format", "docx"], "docx"),
        (["decompress", "a.fic", "-o", "x.png", "--format", "jpg"], "contradicts"),
        (["decompress", "a.fic", "-o", "x.docx"], ".docx"),
        (["compress", "a.png", "b.png", "-o", __file__], "is a file"),
        (["compress", "a.png", "-o", "a.jpg"], "suffix of images"),
        (["compress", "", "-o", "x"], "the name is empty"),
        (["compress", "a.png", "-o", ""], "the name is empty"),
        (["info", ""], "the name is empty"),
        (["integerize", "-", "-o", "x", "--images", "p"], "no standard input or output"),
        (["compress", "-", "a.png", "-o", "x"], "several inputs are given"),
        (["verify", "a.fic", "-"], "several inputs are given"),
        (["compress", "a.png", "b.png", "-o", "-"], "standard output holds one file"),
        (["compress", "tests", "-o", "-"], "standard output holds one file"),
        (["compress", "-", "-o", "folder/"], "standard input has no name"),
        (["decompress", "-", "-o", "x.docx"], ".docx"),
        (["decompress", "a.fic", "-o", "x", "--background", "octarine"], "not a colour"),
        (["decompress", "a.fic", "-o", "x", "--background", "#ff000080"], "not opaque"),
        (["decompress", "a.fic", "-o", "x", "--format", "pdf"], "pdf"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_no_option_takes_the_place_of_the_command():
    for name, rest in (
        ("compress", ["a.png", "-o", "x"]),
        ("decompress", ["a.fic", "-o", "x"]),
        ("info", ["a.fic"]),
        ("verify", ["a.fic"]),
        ("integerize", ["a.pth", "-o", "x", "--images", "p"]),
        ("eval", ["photos"]),
        ("train", ["photos", "--run", "x"]),
    ):
        arguments = build_parser([name]).parse_args([name, *rest])
        assert arguments.command == name
        assert callable(arguments.execute)


def test_training_starts_and_says_what_it_lacks(tmp_path, capsys):
    assert run("train", tmp_path, "--run", tmp_path / "run") == 1
    assert f"{tmp_path}: 0 images" in capsys.readouterr().err


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    text = capsys.readouterr().err
    assert "compress" in text
    assert "no command" in text


def test_help_of_every_command(capsys):
    for command in ("compress", "decompress", "info", "verify", "integerize", "eval", "train"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert len(capsys.readouterr().out) > 300


def test_help_and_info_need_no_pytorch(coded, tmp_path):
    code = (
        "import sys; from fastcodec.cli import main; assert not main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    for arguments in (["info", str(coded / "chelsea.fic")], ["info", "--json", str(coded / "chelsea.fic")]):
        subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL
        )
    code, out, _ = finish(start("--version", cwd=tmp_path))
    assert (code, out) == (0, f"fastcodec {fastcodec.__version__}\n")


# ---- standard input and output


def pipe(*arguments, data: bytes = b"", **options) -> tuple[int, bytes, str]:
    process = start(*arguments, stdin=subprocess.PIPE, text=False, **options)
    out, err = process.communicate(data, timeout=120)
    return process.returncode, out, err.decode()


def test_standard_input_and_output(folder, coded, tmp_path):
    """The bytes of a command with files; every line goes to stderr, where it says what `-` stood for."""
    image, file = (folder / "chelsea.png").read_bytes(), (coded / "chelsea.fic").read_bytes()
    assert run("decompress", coded / "chelsea.fic", "-o", tmp_path / "a.png") == 0
    pixels = (tmp_path / "a.png").read_bytes()
    code, out, err = pipe("compress", "-", "-o", "-", data=image)
    assert (code, out) == (0, file)
    assert err.startswith("<stdin> -> <stdout>: 128x96")
    code, out, err = pipe("decompress", "-", "-o", "-", "--json", data=file)
    assert (code, out) == (0, pixels)
    (record,) = json_lines(err)
    assert (record["file"], record["output"], record["output_bytes"]) == ("<stdin>", "<stdout>", len(pixels))
    code, out, _ = pipe("decompress", "-", "-o", "-", "--format", "webp", data=file)
    assert code == 0
    assert (np.asarray(Image.open(io.BytesIO(out))) == np.asarray(Image.open(tmp_path / "a.png"))).all()
    code, out, _ = pipe("verify", "-", data=file)
    assert code == 0
    assert out.startswith(b"<stdin>: sound")
    code, out, _ = pipe("info", "-", "--json", data=file)
    assert code == 0
    assert json.loads(out)["file"] == "<stdin>"
    assert not list(tmp_path.glob(".*"))


def test_one_end_of_a_pipe_may_be_a_file(folder, coded, tmp_path, monkeypatch, capfdbinary):
    file = (coded / "chelsea.fic").read_bytes()
    with open(folder / "chelsea.png", "rb") as stream:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        assert run("compress", "-", "-o", tmp_path / "a.fic") == 0
    assert (tmp_path / "a.fic").read_bytes() == file
    assert run("compress", folder / "chelsea.png", "-o", "-") == 0
    assert file in capfdbinary.readouterr().out
    monkeypatch.chdir(tmp_path)
    shutil.copy(coded / "chelsea.fic", "-")
    assert run("verify", "./-") == 0
    assert b"-: sound" in capfdbinary.readouterr().out


@pytest.mark.parametrize(
    "command, words",
    [
        (("compress", "-", "-o", "-"), "not an image of a known format"),
        (("decompress", "-", "-o", "-"), "not a .fic file"),
        (("verify", "-"), "not a .fic file"),
        (("info", "-"), "not a .fic file"),
    ],
)
def test_errors_name_standard_input(command, words, monkeypatch, capsys):
    for data, expected in ((b"no image, no file", words), (b"", "empty")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert run(*command) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("fastcodec: <stdin>: ")
        assert expected in captured.err
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert run(*command, "--json") == 1
        captured = capsys.readouterr()
        (record,) = json_lines(captured.out or captured.err.splitlines()[0])
        assert record["file"] == "<stdin>"
        assert expected in record["message"]


def test_damaged_standard_input_writes_nothing(coded, tmp_path):
    file = (coded / "chelsea.fic").read_bytes()
    code, out, err = pipe("decompress", "-", "-o", "-", data=file[:-30] + bytes([file[-30] ^ 4]) + file[-29:])
    assert (code, out) == (1, b"")
    assert err.startswith("fastcodec: <stdin>: tile 0 is damaged")


def test_a_terminal_is_neither_input_nor_output(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert run("info", "-") == 1
    assert "<stdin>: standard input is a terminal" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert run("verify", "-") == 1
    assert "<stdin>: standard input is closed" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(SystemExit) as caught:
        run("compress", folder / "chelsea.png", "-o", "-")
    assert caught.value.code == 2
    assert "standard output is a terminal" in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly(folder):
    reader, writer = os.pipe()
    os.close(reader)
    process = start("compress", folder / "chelsea.png", "-o", "-", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGPIPE
    assert [line for line in err.splitlines() if "chelsea.png -> <stdout>" not in line] == []


def test_a_full_standard_output_is_an_error(folder):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        process = start("compress", folder / "chelsea.png", "-o", "-", stdout=full)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "fastcodec: <stdout>: no space left on device"


# ---- ends before the end


@pytest.fixture
def many(photographs, tmp_path) -> Path:
    """A batch that takes a few seconds."""
    inputs = tmp_path / "many"
    inputs.mkdir()
    Image.fromarray(photographs["astronaut"]).save(inputs / "00.png")
    for i in range(1, 20):
        os.link(inputs / "00.png", inputs / f"{i:02}.png")
    return inputs


def wait_for_one(process: subprocess.Popen, out: Path) -> None:
    end = time.monotonic() + 60
    while not list(out.glob("*.fic")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_batch_goes_on_where_it_was(number, code, many, tmp_path, capsys):
    out = tmp_path / "out"
    process = start("compress", many, "-o", out, "--jobs", 2)
    wait_for_one(process, out)
    process.send_signal(number)
    returned, _, err = finish(process)
    assert returned == code
    assert "interrupted. Finished files are kept; the same command goes on with the rest." in err
    assert "Traceback" not in err
    done = files(out)
    assert 0 < len(done) < 20
    assert all(name.endswith(".fic") for name in done)
    for name in done:
        fastcodec.info(out / name)
    if number == signal.SIGINT:
        assert run("compress", many, "-o", out, "--json") == 0
        statuses = [record["status"] for record in json_lines(capsys.readouterr().out)]
        assert statuses.count("skipped") == len(done)
        assert statuses.count("done") == 20 - len(done)
        assert len({(out / name).read_bytes() for name in files(out)}) == 1


def test_an_interrupt_does_not_wait_for_a_large_image(folder, tmp_path):
    code = (
        "import sys, time; from fastcodec.cli import batches, main;"
        "batches._Compress.code = lambda self, item: (print('coding', flush=True), time.sleep(100));"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = start("compress", folder / "chelsea.png", "-o", f"{tmp_path}/out/", program=("-c", code))
    assert process.stdout.readline() == "coding\n"
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    returned, _, err = finish(process)
    assert returned == 130
    assert "interrupted" in err
    assert time.monotonic() - sent < 20
    assert not files(tmp_path)


def test_a_reader_who_goes_away(many, tmp_path):
    process = start("compress", many, "-o", tmp_path / "out", "--json")
    assert json.loads(process.stdout.readline())["status"] == "done"
    process.stdout.close()
    process.wait(60)
    assert process.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert len(files(tmp_path / "out")) < 20
    assert not list((tmp_path / "out").glob("*.part"))


def test_closed_outputs(coded):
    code, _, errors = finish(start("info", coded / "chelsea.fic", preexec_fn=lambda: os.close(1)))
    assert (code, errors) == (0, "")
    assert finish(start("info", coded / "no.fic", preexec_fn=lambda: (os.close(1), os.close(2))))[0] == 1


def test_a_full_disk_stops_the_batch(many, tmp_path):
    """On a real file system of 64 kB, mounted where only the child sees it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=64k none "$1" || exit 77; "$2" -P -m fastcodec compress "$3" -o "$1" --jobs 2; code=$?;'
        'ls -A "$1"; cp "$1"/*.fic "$4"; exit $code'
    )
    kept = tmp_path / "kept"
    kept.mkdir()
    command = ["unshare", "-rm", "sh", "-c", script, "sh", disk, sys.executable, many, kept]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("no right to mount a small disk")
    assert result.returncode == 1
    assert "no space left on device" in result.stderr
    assert "not begun" in result.stderr
    assert "the same command goes on" in result.stderr
    assert "Traceback" not in result.stderr
    assert ".part" not in result.stdout
    assert files(kept)
    for name in files(kept):
        fastcodec.info(kept / name)


def test_a_full_disk_while_decompressing(coded, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastcodec.files.os.replace", full)
    monkeypatch.setattr("fastcodec.files.os.link", full)
    assert run("decompress", coded, "-o", tmp_path, "--recursive", "--jobs", 1) == 1
    err = capsys.readouterr().err
    assert f"fastcodec: stopped: {tmp_path}" in err
    assert ".png: no space left on device" in err
    assert not files(tmp_path)


def test_progress_on_a_terminal(folder, tmp_path):
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = start("compress", folder, "-o", tmp_path, "--recursive", stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux's end of a terminal
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.communicate(timeout=60)[0].count("\n") == 3
    assert process.returncode == 0
    text = shown.decode()
    assert "images/s" in text
    assert "MP/s" in text
    assert "ETA" in text
    assert "3 files: 3 compressed" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("count, expected", [(1, []), (2, ["sound 2/2", "ETA"])])
def test_progress_on_a_narrow_terminal(count, expected, monkeypatch, capsys):
    """The count and the time left are what stays of it; a lone file's line stands alone."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    record = {"width": 1, "height": 1, "bytes": 1, "bpp": 8.0, "quality": 1}
    with Report("sound", count, count, False) as report:
        for _ in range(count):
            report(Outcome(Task(Path("a.fic"), None, 1), "done", record))
    assert bool(sys.stderr.getvalue()) is bool(expected)
    for words in expected:
        assert words in sys.stderr.getvalue()
    assert capsys.readouterr().out.count("a.fic: sound") == count


# ---- the parallel pipeline


def test_devices_of_the_command_line(folder, tmp_path, capsys, simulator, monkeypatch):
    """The GPU's pipeline, in simulation, writes what the CPU reads; a GPU that is not there is one line."""
    load = batches._load_codec

    def loaded(arguments):
        """What reads files ahead as for a GPU."""
        codec = load(arguments)
        codec.device = torch.device("cuda")
        return codec

    monkeypatch.setattr(batch._Gatherer, "THREADS", 1)  # the interpreter takes one at a time
    small = tmp_path / "small"
    small.mkdir()
    for name, box in (("a", (0, 0, 40, 30)), ("b", (40, 0, 80, 30)), ("c", (0, 30, 30, 50))):
        Image.open(folder / "chelsea.png").crop(box).save(small / f"{name}.png")
    (small / "d.png").write_bytes(b"no image")
    with simulated_gpu(simulator), monkeypatch.context() as patch:
        patch.setattr(batches, "_load_codec", loaded)
        assert main(["compress", str(small), "-o", str(tmp_path / "fic"), "--device", "cuda", "--json"]) == 1
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert sorted(record["status"] for record in records) == ["done"] * 3 + ["failed"]
        out = tmp_path / "sim"
        assert main(["decompress", str(tmp_path / "fic"), "-o", str(out), "--device", "cuda", "--json"]) == 0
    assert main(["decompress", str(tmp_path / "fic"), "-o", str(tmp_path / "cpu"), "--device", "cpu"]) == 0
    for name in "abc":
        one, other = (np.asarray(Image.open(tmp_path / kind / f"{name}.png")).astype(int) for kind in ("sim", "cpu"))
        assert np.abs(one - other).max() <= 1
    capsys.readouterr()
    if not torch.cuda.is_available():
        assert main(["compress", str(small), "-o", str(tmp_path / "out"), "--device", "cuda"]) == 1
        assert "PyTorch finds no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compress", str(small), "-o", str(tmp_path / "out"), "--device", "gpu"])


class FakeSteps:
    """Counts what runs at once; `broken` tasks fail."""

    def __init__(self, pixels: int = 1, broken: tuple[str, ...] = ()):
        self.size, self.broken = pixels, broken
        self.lock, self.coding, self.most_coding, self.held, self.most_held = threading.Lock(), 0, 0, 0, 0
        self.threads: set[int] = set()

    def existing(self, task):
        return {"old": True} if task.source.name == "old" else None

    def pixels(self, task):
        return self.size

    def read(self, task):
        with self.lock:
            self.held += 1
            self.most_held = max(self.most_held, self.held)
        return task.source.name

    def code(self, item):
        with self.lock:
            self.coding += 1
            self.most_coding = max(self.most_coding, self.coding)
            self.threads.add(torch.get_num_threads())
        time.sleep(0.005)
        with self.lock:
            self.coding -= 1
        if item in self.broken:
            raise RuntimeError(f"broken {item}")
        return item.upper()

    def write(self, task, item, result, seconds):
        assert seconds > 0
        with self.lock:
            self.held -= 1
        return {"result": result}


class FakeBatches(FakeSteps):
    """Codes items together whose names begin alike; those that begin with "alone" one by one."""

    def __init__(self, **options):
        super().__init__(**options)
        self.batches: list[list[str]] = []

    def kind(self, item):
        return None if item.startswith("alone") else item[0]

    def code_many(self, items):
        with self.lock:
            self.batches.append(list(items))
        time.sleep(0.02)
        if any(item in self.broken for item in items):
            raise RuntimeError("one of these")
        return [item.upper() for item in items]


def outcomes_of(steps: FakeSteps, names: list[str], jobs: int, **options) -> dict[str, batch.Outcome]:
    outcomes: dict[str, batch.Outcome] = {}
    tasks = [batch.Task(Path(name)) for name in names]
    threads = torch.get_num_threads()
    try:
        report = lambda outcome: outcomes.update({outcome.task.source.name: outcome})  # noqa: E731
        batch.run(tasks, steps, jobs=jobs, report=report, **options)
    finally:
        torch.set_num_threads(threads)
    return outcomes


def test_every_task_ends_once_and_failures_stay_alone():
    names = [f"n{i}" for i in range(40)] + ["old"]
    steps = FakeSteps(broken=("n3", "n17"))
    outcomes = outcomes_of(steps, names, 3)
    assert sorted(outcomes) == sorted(names)
    assert {name for name, outcome in outcomes.items() if outcome.status == "failed"} == {"n3", "n17"}
    assert outcomes["old"].record == {"old": True}
    assert outcomes["n5"].record == {"result": "N5"}
    assert 1 < steps.most_coding <= 3
    assert steps.threads == {max(1, batch.available_cores() // 3)}


def test_memory_bounds_what_is_in_flight(monkeypatch):
    monkeypatch.setattr(batch, "_memory", lambda: 2 * batch.BYTES_PER_PIXEL * 250)
    steps = FakeSteps(pixels=100)
    assert len(outcomes_of(steps, [f"n{i}" for i in range(20)], 8)) == 20
    assert steps.most_held <= 2
    huge = FakeSteps(pixels=10**9)
    assert len(outcomes_of(huge, ["a", "b", "c"], 8)) == 3
    assert huge.most_held == 1


def test_what_waits_is_coded_together():
    names = [f"{kind}{i}" for i in range(30) for kind in ("a", "b")] + ["alone1", "alone2", "old"]
    steps = FakeBatches(broken=("a7", "b9", "alone2"))
    outcomes = outcomes_of(steps, names, 12, together=4)
    assert sorted(outcomes) == sorted(names)
    assert {name for name, outcome in outcomes.items() if outcome.status == "failed"} == {"a7", "b9", "alone2"}
    assert outcomes["b5"].record == {"result": "B5"}
    assert outcomes["alone1"].record == {"result": "ALONE1"}
    assert max(map(len, steps.batches)) == 4
    assert all(len({name[0] for name in items}) == 1 for items in steps.batches)
    assert not any(name.startswith("alone") for items in steps.batches for name in items)


@pytest.mark.parametrize("steps, options", [(FakeSteps, {}), (FakeBatches, {"together": 4})])
def test_what_the_report_raises_ends_the_run(steps, options):
    def report(outcome):
        raise BrokenPipeError

    with pytest.raises(batch.StoppedError) as caught:
        batch.run([batch.Task(Path(f"n{i}")) for i in range(500)], steps(), jobs=2, report=report, **options)
    assert isinstance(caught.value.cause, BrokenPipeError)
    assert not caught.value.running


def test_words():
    assert [size_text(n) for n in (0, 7, 999, 1000, 123456, 999999, 5e9)] == [
        *("0 bytes", "7 bytes", "999 bytes", "1 kB", "123 kB", "1 MB", "5.0 GB"),
    ]
    assert explain(OSError(errno.ENOSPC, "No space left on device", "x.fic"), Path("a.png")) == (
        "x.fic: no space left on device"
    )
    assert explain(ValueError("a.png: two\n  lines"), Path("a.png")) == "a.png: two lines"
    assert explain(MemoryError(), Path("a.png")) == "a.png: MemoryError"
    assert explain(KeyError("x")) == "KeyError: 'x'"
