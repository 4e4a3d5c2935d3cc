"""Draw every system of conf/system in docs/systems.md, between its two marks: python scripts/draw_systems.py [FILE]"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sysdpo.graph import SystemGraph
from sysdpo.paths import CONF

PAGE = CONF.parent / "docs" / "systems.md"
MARKS = ("<!-- systems -->", "<!-- /systems -->")
HEADING = """One file each under `conf/system/`. Stadiums are inputs, boxes intermediate variables, double boxes final
ones; `y ~ psi1` says which component draws the variable. A dotted arrow leaves a variable whose value decides who
draws the other, or whether it is drawn at all.

| a variable may say | and means |
|---|---|
| `parents: [x, y]` or `{name: y}` | what its component reads, and under which name its prompt knows it |
| `component: psi1`, in several variables | one model draws them all, with the sum of their gradients |
| `component: {choice: {a: first, b: second}}` | where `choice` is `a`, `first` draws it; only its factor counts |
| `when: {choice: a}` | it is drawn where `choice` is `a`; elsewhere it is empty and its factor is 1 |
| `plate: captions` | one value for each element of a list |

Beside the variables, `unroll: {loop: {draft: z}, steps: 3}` repeats one pass of a loop with the same weights. A
prompt's `user` may be a list of templates; each variable is asked with the one that fits its parents.
`make draw-systems` writes this page."""


def block() -> str:
    """Heading, and for each system its name, what its file's first comment says, and the graph."""
    sections = [_section(path) for path in sorted((CONF / "system").glob("*.yaml"))]
    return "\n\n".join([HEADING, *sections])


def _section(path: Path) -> str:
    config: Any = OmegaConf.to_container(OmegaConf.load(path))
    graph = SystemGraph(config["variables"])
    words = list(_first_comment(path))
    if unroll := config.get("unroll"):
        words.append(f"Unrolled to {unroll['steps']} steps:")
        graph = graph.unroll(unroll["loop"], unroll["steps"])
    return f"## {path.stem}\n\n{' '.join(words)}\n\n```mermaid\n{graph.to_mermaid()}\n```"


def _first_comment(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=PAGE, help="default: docs/systems.md")
    file = parser.parse_args().file
    text = file.read_text(encoding="utf-8")
    if [text.count(mark) for mark in MARKS] != [1, 1]:
        parser.error(f"{file}: needs {MARKS[0]} and {MARKS[1]} once each.")
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    file.write_text(f"{before}{MARKS[0]}\n{block()}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
