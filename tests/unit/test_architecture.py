"""A new system touches `conf/` only: no module of the package names one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.composed import SYSTEMS

PACKAGE = Path(__file__).resolve().parents[2] / "sysdpo"


def words(tree: ast.Module) -> Iterator[str]:
    """Names and texts of a module; comments and docstrings may talk of anything."""
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            docstrings.add(id(node.body[0].value))  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        for name in ("id", "attr", "arg", "name", "module"):
            if isinstance(found := getattr(node, name, None), str):
                yield found


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_module_names_a_system(system: str) -> None:
    pattern = re.compile(rf"(?<![A-Za-z]){system}(?![A-Za-z])")
    for path in PACKAGE.rglob("*.py"):
        found = [word for word in words(ast.parse(path.read_text(encoding="utf-8"))) if pattern.search(word)]
        assert not found, (path.name, found)


def test_the_search_would_find_one() -> None:
    source = '"""two_llm"""\nif config.system == "two_llm":\n    run_two_llm()\n'
    assert [word for word in words(ast.parse(source)) if "two_llm" in word] == ["two_llm", "run_two_llm"]
