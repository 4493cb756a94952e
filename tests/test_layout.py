"""The rules of the layout (docs/architecture.md): imports go down, private names stay home, nothing grows too large."""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"fastcodec": ROOT / "fastcodec", "fastcodec.kernels": ROOT / "kernels", "bench": ROOT / "bench"}
pytestmark = pytest.mark.skipif(not (ROOT / "kernels").is_dir(), reason="needs the repository")

# From the bottom up; the longest prefix of a module's name that stands here says where it is.
LAYERS = (
    "fastcodec.kernels",
    "fastcodec.errors fastcodec.constants fastcodec.geometry fastcodec.quality fastcodec.machine fastcodec.metrics "
    "fastcodec.arguments fastcodec.calls fastcodec.threads fastcodec.files fastcodec.grouping",
    "fastcodec.entropy fastcodec.rans fastcodec.metadata fastcodec.png",
    "fastcodec.models fastcodec.container fastcodec.images fastcodec.alpha fastcodec.lossless",
    "fastcodec.engines",
    "fastcodec.results fastcodec.codec fastcodec.convert fastcodec.pillow fastcodec.adapters",
    "fastcodec.crops fastcodec.graphics fastcodec.batch fastcodec.evaluate fastcodec.train fastcodec.demo "
    "fastcodec.fit_tables fastcodec.rate_distortion",
    "fastcodec.cli",
    "fastcodec fastcodec.__main__ bench",
)
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 600, 60, 6
#: Functions with a signature that is not ours to choose: a module's list of this name says which, and why.
FLAT = "FLAT_SCHEMAS"


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the three packages by its name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text("utf-8"))


def package_of(module: str) -> str:
    return module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]


def imports(module: str) -> Iterator[tuple[str, str | None, int]]:
    """What a module imports of these packages, wherever: module, name in it if it is none itself, and line."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = package_of(module).split(".")
                base = ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))
            for alias in node.names:
                if f"{base}.{alias.name}" in modules():
                    yield f"{base}.{alias.name}", None, node.lineno
                elif base in modules():
                    yield base, alias.name, node.lineno


def layer(module: str) -> int:
    prefixes = [
        (len(name), number) for number, names in enumerate(LAYERS) for name in names.split() if within(module, name)
    ]
    return max(prefixes)[1]


def within(module: str, package: str) -> bool:
    return module == package or (module.startswith(package + ".") and package != "fastcodec")


def where(module: str, line: int = 0) -> str:
    return f"{modules()[module].relative_to(ROOT)}:{line}"


def test_every_module_has_its_layer():
    assert [module for module in modules() if not any(within(module, name) for name in " ".join(LAYERS).split())] == []


def test_imports_go_down():
    up = [
        f"{where(module, line)} imports {other}"
        for module in modules()
        for other, _, line in imports(module)
        if layer(other) > layer(module) and other != "fastcodec"
    ]
    assert up == []


def test_no_circle():
    graph = {module: {other for other, _, _ in imports(module)} - {module} for module in modules()}
    # A package's __init__ that gathers names of its own modules, which import nothing from it, makes no circle.
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_one_style_of_imports():
    """Relative within a package, absolute from outside."""
    wrong = [
        where(module, node.lineno)
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
        if node.module.split(".")[0] == module.split(".")[0]
    ]
    assert wrong == []


def is_private(name: str) -> bool:
    """Whether a name is private; `_replace` and its like are public methods of named tuples."""
    return name.startswith("_") and not name.startswith("__") and name not in ("_replace", "_asdict", "_fields")


def defined(module: str) -> set[str]:
    """Names that a module gives: its own, and those of its classes' attributes."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # __slots__, buffers, ctypes' fields
            names.add(node.value)
    return names


def test_private_names_stay_in_their_module():
    """An underscore module is for the modules of its own folder, and any other private name for the module it is in."""
    ours = set().union(*(defined(module) for module in modules()))
    wrong = []
    for module in modules():
        for other, name, line in imports(module):
            last = other.rpartition(".")[2]
            if name is not None and is_private(name):
                wrong.append(f"{where(module, line)} imports {other}.{name}")
            if is_private(last) and not within(module, other.rpartition(".")[0]):
                wrong.append(f"{where(module, line)} imports {other}")
        own = defined(module)
        wrong += [
            f"{where(module, node.lineno)} uses .{node.attr}"
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Attribute) and is_private(node.attr)
            if node.attr in ours and node.attr not in own
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        ]
    assert wrong == []


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def flat(module: str) -> set[str]:
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == FLAT:
            return set(ast.literal_eval(node.value))
    return set()


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("jit" in ast.dump(decorator) for decorator in function.decorator_list)


def test_nothing_grows_too_large():
    wrong = [
        f"{where(module)} has {lines} lines"
        for module, path in modules().items()
        if (lines := len(path.read_text("utf-8").splitlines())) > MOST_LINES
    ]
    for module in modules():
        for function in functions(module):
            parameters = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            count = len(parameters) - (bool(parameters) and parameters[0].arg in ("self", "cls"))
            if count > MOST_PARAMETERS and not is_kernel(function) and function.name not in flat(module):
                wrong.append(f"{where(module, function.lineno)} {function.name} takes {count} parameters")
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > MOST_FUNCTION_LINES and not is_kernel(function):
                wrong.append(f"{where(module, function.lineno)} {function.name} has {lines} lines")
    assert wrong == []


# In each of these pairs one stands in kernels/, which knows nothing of what is above it.
TWICE = {"errors", "cpu"}


def test_a_name_of_a_file_stands_once():
    names = defaultdict(list)
    for module, path in modules().items():
        if path.name not in ("__init__.py", "__main__.py"):
            names[module.split(".")[0], path.stem.strip("_")].append(where(module))
    assert {name: paths for (_, name), paths in names.items() if len(paths) > 1 and name not in TWICE} == {}
