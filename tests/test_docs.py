"""README, CONTRIBUTING and docs/: the pages build, what they name exists, and their examples do what they show.

The Python blocks of a document run in order in one namespace, which `given` begins, in a folder with photo.png,
screen.png and photo.fic. A block below the comment `<!-- not run: REASON -->` is left out. A comment after an
expression says what comes of it, or stands alone on the line below it:

    expression  # -> the value's repr
    expression  # raises ErrorType: the message, or its beginning and ...
"""

import ast
import contextlib
import importlib.util
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_zoo import lively

import fastcodec
from fastcodec import cli, errors, rans

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fastcodec", "kernels", "bench", "tests", "docs")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_EXAMPLES = ["README.md", "adapters.md", "mixture.md", "portable.md", "rans.md", "zoo.md"]
#: Written by commands that a page tells of, and in no checkout.
OUTPUTS = {"bench/results/gpu.json"}

FENCE = re.compile(r"^(?P<mark>```+)(?P<language>\S*)[^\n]*\n(?P<code>.*?)^(?P=mark)$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+? -->\n\Z", re.DOTALL)
CLAIM = re.compile(r"# (->|raises) (.+)$")

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# ---- the pages


def test_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_reference_has_every_public_name() -> None:
    named = set(re.findall(r"\w+", (ROOT / "docs" / "api.md").read_text())) | set(vars(errors)) | {"__version__"}
    assert {*fastcodec.__all__, *rans.__all__} <= named


# ---- what they name


def prose(text: str) -> str:
    """A page without its fenced blocks and comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", text), flags=re.DOTALL)


def code(text: str) -> list[str]:
    """A page's code: lines of blocks, fenced or indented, and what stands in backticks in the prose."""
    lines = [line for fence in FENCE.finditer(text) for line in fence["code"].splitlines()]
    lines += re.findall(r"^    +(.+)$", prose(text), re.MULTILINE)
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_name
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]+`", "code", prose(page.read_text()))):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if ":" not in target and not (there.exists() and (not anchor or anchor in anchors(there))):
            dead.append(target)
    assert dead == []


@by_name
def test_paths_exist(page: Path) -> None:
    """From the root, as in `kernels/build.py`; or a file of the code by the end of its path, as in `build.py`."""
    known = ["/" + str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / name).rglob("*.*")]
    missing = set()
    for piece in code(page.read_text()):
        for path in re.findall(rf"(?<![\w/.~-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", piece):
            if path not in OUTPUTS and not (ROOT / path).exists():
                missing.add(path)
        if re.fullmatch(r"\w[\w/]*\.(?:py|h|cpp|cu|cuh)", piece) and not any(p.endswith("/" + piece) for p in known):
            missing.add(piece)
    assert missing == set()


@by_name
def test_commands_exist(page: Path) -> None:
    """Modules of `python -m`, targets of make, benchmarks by name, and options of `fastcodec`'s commands."""
    text = page.read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing = [name for name in re.findall(r"python3? -m ([\w.]+)", text) if not is_module(name)]
    benchmarks = re.findall(r"(?:make bench ARGS=|python -m bench )(\w+)", text)
    missing += [name for name in benchmarks if not is_module(f"bench.{name}")]
    for piece in code(text):
        words = re.match(r"(?:[A-Z_]+=\S* )*make((?: +[a-z][a-z-]*)+)(?= |$)", piece)
        missing += [f"make {word}" for word in words[1].split() if word not in targets] if words else []
        if command := re.match(r"(?:.* \| )?fastcodec ([a-z]+)\b([^#|]*)", piece):
            text_of_help = help_of(command[1])
            options = re.findall(r"(?<!\S)--?[a-z][a-z-]*", command[2])
            missing += [f"{command[1]} {option}" for option in options if option not in text_of_help]
    assert missing == []


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    if path.parts[len(ROOT.parts)] not in FOLDERS:
        return importlib.util.find_spec(name) is not None
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def help_of(command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0, f"fastcodec {command}"
    return out.getvalue()


# ---- their examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]) -> Path:
    """photo.png, screen.png and photo.fic, of 64 x 64 pixels."""
    path = tmp_path_factory.mktemp("examples")
    Image.fromarray(photographs["coffee"][100:164, 200:264]).save(path / "photo.png")
    Image.fromarray(np.kron(np.eye(8, dtype=np.uint8), np.full((8, 8), 255, np.uint8))).save(path / "screen.png")
    codec = fastcodec.Codec.load("swift", device="cpu")
    (path / "photo.fic").write_bytes(codec.encode(Image.open(path / "photo.png")))
    return path


@pytest.fixture
def given(photographs: dict[str, np.ndarray]) -> dict[str, object]:
    """The names that examples begin with."""
    crops = [photograph[100:164, 200:264].copy() for photograph in photographs.values()]
    mixtures = {"w": torch.full((3, 6, 4), 1 / 3), "m": torch.zeros(3, 6, 4), "sigma": torch.ones(3, 6, 4)}
    tables = {"hyper": torch.zeros(2, 4, dtype=torch.int16), "indexes": torch.full((2, 4), 9, dtype=torch.uint8)}
    return {
        "image": crops[0],
        "images": crops,
        "photographs": crops,
        "model": lively("mbt2018-mean", crops[0]).state_dict(),  # what CompressAI's model of this name has
        "tables": rans.gaussian_tables(),
        "symbols": torch.zeros(6, 4, dtype=torch.int16),
        **mixtures,
        **tables,
    }


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str, given: dict[str, object], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [page] = [page for page in PAGES if page.name == name]
    monkeypatch.chdir(folder)
    checked = run(page.read_text(), str(page), given)
    assert checked >= (30 if name == "rans.md" else 0)


def test_no_page_with_examples_is_forgotten() -> None:
    assert [page.name for page in PAGES if blocks(page.read_text())] == WITH_EXAMPLES


def blocks(text: str) -> list[tuple[int, str]]:
    """The Python blocks of a page that run: the number of lines before each, and its source."""
    fences = [fence for fence in FENCE.finditer(text) if fence["language"] == "python"]
    runs = [fence for fence in fences if not NOT_RUN.search(text[: fence.start()])]
    return [(text.count("\n", 0, fence.start("code")), fence["code"]) for fence in runs]


def claims(source: str) -> dict[int, re.Match]:
    """What a block claims, by the number of the line whose expression it is about."""
    result, code_line = {}, 0
    for number, line in enumerate(source.splitlines(), 1):
        if not line.lstrip().startswith("#"):
            code_line = number
        if match := CLAIM.search(line):
            assert code_line not in result, f"two claims about one line: {line}"
            result[code_line] = match
    return result


def check(kind: str, expected: str, value: object, error: Exception | None) -> str:
    """What is wrong about a claim; empty when it holds."""
    if error is not None:
        happened = f"{type(error).__name__}: {error}"
        same = happened.startswith(expected[:-3]) if expected.endswith("...") else happened == expected
        return "" if kind == "raises" and same else f"raised {happened}"
    return "" if kind == "->" and repr(value) == expected else f"gave {value!r}"


def run(text: str, name: str, namespace: dict[str, object]) -> int:
    """Run a page's blocks and check their claims; the number of claims. Raises AssertionError naming the line."""
    checked = 0
    for above, source in blocks(text):
        pending = claims(source)
        for statement in ast.parse(source).body:
            claim = pending.pop(statement.end_lineno, None)
            ast.increment_lineno(statement, above)
            if claim is None:
                exec(compile(ast.Module([statement], []), name, "exec"), namespace)
                continue
            where = f"{name}:{statement.end_lineno}"
            assert isinstance(statement, ast.Expr), f"{where}: only an expression can have a claim"
            value, error = None, None
            try:
                value = eval(compile(ast.Expression(statement.value), name, "eval"), namespace)
            except Exception as caught:
                error = caught
            wrong = check(claim[1], claim[2], value, error)
            assert not wrong, f"{where} {wrong}, the page says: {claim[0]}"
            checked += 1
        assert not pending, f"{name}: claims about no statement, in lines {[above + line for line in pending]}"
    return checked


@pytest.mark.parametrize(
    "block",
    [
        "1 + 1  # -> 3",
        "1 + 1  # raises ValueError: no",
        "int('x')  # -> 1",
        "int('x')  # raises TypeError: invalid",
        "int('x')  # raises ValueError: another",
        "int('x')  # raises ValueError: invalid literal",
        "x = 1  # -> 1",
        "if True:\n    1 + 1  # -> 2\n2",
        "1 / 0",
    ],
)
def test_a_page_that_is_wrong_fails(block: str) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError)):
        run(f"```python\n{block}\n```\n", "page", {})
    right = "```python\nx = 1\nx + 1  # -> 2\nint('x')\n# raises ValueError: invalid literal ...\n```\n"
    assert run(right, "page", {}) == 2
    assert run(f"<!-- not run: wrong -->\n```python\n{block}\n```\n", "page", {}) == 0


def test_names_of_the_coder_stand_in_its_guide() -> None:
    """docs/rans.md lists each public name, functions and methods with their parameters and defaults."""
    reference = (ROOT / "docs" / "rans.md").read_text().split("## Reference")[1]
    written = re.findall(r"^\| `([A-Za-z_.]+)(\(.*?\))?` ", reference, re.MULTILINE)
    assert {name.split(".")[0] for name, _ in written} == set(rans.__all__)
    for name, parameters in written:
        if parameters:
            thing = rans
            for part in name.split("."):
                thing = getattr(thing, part)
            signature = inspect.signature(thing)
            bare = [
                item.replace(annotation=item.empty) for item in signature.parameters.values() if item.name != "self"
            ]
            assert parameters == str(inspect.Signature(bare)), f"{name}: {inspect.Signature(bare)}"
