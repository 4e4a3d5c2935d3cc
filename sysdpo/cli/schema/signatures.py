"""What a `_target_` takes, read from its source without importing it: the annotations are the schema."""

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sysdpo.cli.schema.kinds import ANY, Kind, kind

PLAIN = {
    "int": kind("whole"),
    "float": kind("number"),
    "str": kind("text"),
    "bool": kind("flag"),
    "None": kind("null"),
    "Path": kind("text"),
    "list": kind("list"),
    "tuple": kind("list"),
    "Sequence": kind("list"),
    "Collection": kind("list"),
    "dict": kind("mapping"),
    "Mapping": kind("mapping"),
}
PART = Kind(frozenset({"mapping"}), is_part=True)
LISTS = ("list", "tuple", "Sequence", "Collection", "Iterable", "set", "frozenset")
MAPPINGS = ("dict", "Mapping", "MutableMapping")


@dataclass(frozen=True)
class Signature:
    """The settings a target takes by name; `rest`: it takes others too (`**settings`)."""

    keys: Mapping[str, Kind]
    rest: bool = False


Definition = ast.ClassDef | ast.FunctionDef


@cache
def signature(target: str) -> Signature | None:
    """Of a class or function, `package.module.name`; None where no source says it (it is then not checked)."""
    found = _definition(target)
    return None if found is None else _read(*found)


def _read(module: str, node: Definition) -> Signature | None:
    if isinstance(node, ast.FunctionDef):
        return _of_arguments(module, node, skip=0)
    made = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    if made is not None:
        return _of_arguments(module, made, skip=1)
    inherited: dict[str, Kind] = {}
    for base in reversed(node.bases):
        above: Any = _definition_of_name(module, ast.unparse(base))
        if above is None:
            if ast.unparse(base) not in ("object", "Protocol", "ABC"):
                return None
            continue
        read = _read(*above)
        if read is None:
            return None
        if not _is_dataclass(node):
            return read
        inherited |= read.keys
    fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
    if not _is_dataclass(node):
        return Signature(inherited)
    named = {ast.unparse(f.target): _kind(module, f.annotation) for f in fields if not _is_class_variable(f)}
    return Signature(inherited | named)


def _of_arguments(module: str, node: ast.FunctionDef, skip: int) -> Signature:
    arguments = [*node.args.posonlyargs, *node.args.args][skip:] + node.args.kwonlyargs
    keys = {a.arg: _kind(module, a.annotation) if a.annotation else ANY for a in arguments}
    return Signature(keys, rest=node.args.kwarg is not None)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _is_class_variable(field: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(field.annotation) or (
        field.value is not None and "init=False" in ast.unparse(field.value)
    )


def _kind(module: str, node: ast.expr) -> Kind:
    """The kind that an annotation says; anything that is not plain data is left to the part itself."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _kind(module, ast.parse(node.value, mode="eval").body)
        return PLAIN["None"] if node.value is None else ANY
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _kind(module, node.left) | _kind(module, node.right)
    if isinstance(node, ast.Subscript):
        return _generic(module, ast.unparse(node.value).rpartition(".")[2], node.slice)
    name = ast.unparse(node)
    if (plain := PLAIN.get(name.rpartition(".")[2])) is not None:
        return plain
    found = _definition_of_name(module, name, aliases=True)
    if found is None:
        return ANY
    home, what = found
    if isinstance(what, ast.expr):
        return _kind(home, what)
    # an object of ours is described by a mapping with its _target_; how anybody else's is made, we do not know
    return PART if isinstance(what, ast.ClassDef) and home.split(".")[0] == "sysdpo" else ANY


def _generic(module: str, name: str, inside: ast.expr) -> Kind:
    parts = list(inside.elts) if isinstance(inside, ast.Tuple) else [inside]
    if name == "Literal":
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        texts = tuple(value for value in values if isinstance(value, str))
        return Kind(frozenset({"text"}), choices=texts) if len(texts) == len(values) else ANY
    if name == "Optional":
        return _kind(module, parts[0]) | PLAIN["None"]
    if name == "Union":
        first, *others = [_kind(module, part) for part in parts]
        for other in others:
            first |= other
        return first
    if name in ("Annotated", "Final"):
        return _kind(module, parts[0])
    if name == "Callable":
        return PART  # written as the _target_ and _partial_: true
    if name in LISTS:
        return kind("list", item=_kind(module, parts[0]))
    return kind("mapping", item=_kind(module, parts[-1])) if name in MAPPINGS else ANY


def _definition(target: str) -> tuple[str, Definition] | None:
    module, _, name = target.rpartition(".")
    found = _definition_of_name(module, name) if module else None
    return found if found is not None and isinstance(found[1], Definition) else None  # type: ignore[return-value]


def _definition_of_name(
    module: str, name: str, aliases: bool = False, depth: int = 0
) -> tuple[str, Definition | ast.expr] | None:
    """Where a name of a module is defined, following imports; with `aliases`, names of types too."""
    tree = _tree(module)
    if tree is None or depth > 5 or "." in name:
        return None
    for node in tree.body:
        if isinstance(node, Definition) and node.name == name:
            return module, node
        if aliases and isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]:
            return module, node.value
        if aliases and isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == name:
            return module, node.value
    for part in ast.walk(tree):
        if isinstance(part, ast.ImportFrom):
            for imported in part.names:
                if (imported.asname or imported.name) == name:
                    return _definition_of_name(_absolute(module, part), imported.name, aliases, depth + 1)
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    path = _source(module)
    is_package = path is not None and path.name == "__init__.py"
    base = module.split(".")[: len(module.split(".")) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


@cache
def _tree(module: str) -> ast.Module | None:
    path = _source(module)
    try:
        return None if path is None else ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return None  # Hydra says what is wrong with it when it imports it


def _source(module: str) -> Path | None:
    """A module's file; only the first package of the path is asked for, which imports nothing."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for location in spec.submodule_search_locations or ():
        path = Path(location).joinpath(*rest)
        for file in (path.with_suffix(".py") if rest else path, path / "__init__.py"):
            if file.is_file():
                return file
    return None
