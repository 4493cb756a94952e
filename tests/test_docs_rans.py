"""docs/rans.md does what it shows.

Its Python blocks run in order in one namespace. A comment after an expression says what comes of it:

    expression  # -> the value's repr
    expression  # raises ErrorType: the message

A message that ends in "..." goes on. The comment may also stand alone on the line below.
"""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcodec import rans

PAGE = Path(__file__).resolve().parents[1] / "docs" / "rans.md"
CLAIM = re.compile(r"# (->|raises) (.+)$")


def blocks(text: str) -> list[tuple[int, str]]:
    """The Python blocks of a page: the number of lines before each, and its source."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


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


def run(text: str, name: str) -> int:
    """Runs a page's blocks and checks their claims; the number of claims. Raises AssertionError naming the line."""
    namespace: dict[str, object] = {}
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


def test_examples() -> None:
    assert run(PAGE.read_text(), str(PAGE)) >= 30


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
        run(f"```python\n{block}\n```\n", "page")
    right = "```python\nx = 1\nx + 1  # -> 2\nint('x')\n# raises ValueError: invalid literal ...\n```\n"
    assert run(right, "page") == 2


def test_scale_indexes() -> None:
    """The nearest in log-scale, for all kinds of sigmas."""
    sigmas = torch.from_numpy(np.geomspace(0.05, 100, 6000)).reshape(3, 1000, 2)
    distance = (sigmas.log()[..., None] - torch.from_numpy(np.log(rans.GAUSSIAN_SCALES))).abs()
    indexes = rans.scale_indexes(sigmas)
    assert (indexes.dtype, indexes.shape) == (torch.uint8, sigmas.shape)
    assert indexes.is_contiguous()
    nearest = distance.min(-1).values
    chosen = distance.gather(-1, indexes.long()[..., None])[..., 0]
    assert torch.all(chosen <= nearest + 1e-6)
    odd = torch.tensor([-1.0, 0.0, 0.1157, 0.1158, torch.inf, torch.nan])
    assert rans.scale_indexes(odd).tolist() == [0, 0, 0, 1, 63, 63]
    assert rans.scale_indexes(sigmas.half().transpose(0, 1)).is_contiguous()
    own = [0.5, 2.0, 8.0]
    assert rans.scale_indexes(torch.tensor([0.1, 0.99, 1.01, 3.99, 4.01]), own).tolist() == [0, 0, 1, 1, 2]
    assert rans.scale_indexes(torch.tensor([7.0]), [1.0]).tolist() == [0]
    for wrong in ([], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0], np.ones((2, 2)), np.arange(1, 258)):
        with pytest.raises(ValueError, match="1 to 256 numbers"):
            rans.scale_indexes(sigmas, wrong)


def test_thresholds_of_scale_indexes_are_the_same_everywhere() -> None:
    """A NumPy whose powers differ in their last bits has the same float32 thresholds."""
    edges = np.sqrt(rans.GAUSSIAN_SCALES[:-1] * rans.GAUSSIAN_SCALES[1:])
    assert np.array_equal(np.float32(edges * (1 - 1e-12)), np.float32(edges * (1 + 1e-12)))


def test_reference_names_everything() -> None:
    """Each public name stands in the reference, functions and methods with their parameters and defaults."""
    reference = PAGE.read_text().split("## Reference")[1]
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
