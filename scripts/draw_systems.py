"""The page that draws every system of conf/system: python scripts/draw_systems.py > docs/systems.md"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sysdpo.cli import CONFIG
from sysdpo.graph import SystemGraph

HEADING = """# Systems

Every system is one file under `conf/system/`; choose it with `system=NAME`. Stadiums are inputs, boxes intermediate
variables, double boxes final ones; `y ~ psi1` says which component draws the variable. A dotted arrow leaves a variable
whose value decides who draws the other, or whether it is drawn at all.

| a variable may say | and means |
|---|---|
| `parents: [x, y]` or `{name: y}` | what its component reads, and under which name its prompt knows it |
| `component: psi1`, in several variables | one model draws them all, with the sum of their gradients |
| `component: {choice: {a: first, b: second}}` | where `choice` is `a`, `first` draws it; only its factor counts |
| `when: {choice: a}` | it is drawn where `choice` is `a`; elsewhere it is empty and its factor is 1 |
| `plate: captions` | one value for each element of a list |

Beside the variables, `unroll: {loop: {draft: z}, steps: 3}` repeats one pass of a loop with the same weights, and a
prompt's `user` may be a list of templates, of which each variable is asked with the one that fits its parents.

`make draw-systems` writes this page."""


def page() -> str:
    """Heading, what the file's first comment says, and the graph, for each system."""
    return "\n\n".join([HEADING, *(_section(path) for path in sorted((CONFIG / "system").glob("*.yaml")))])


def _section(path: Path) -> str:
    config: Any = OmegaConf.to_container(OmegaConf.load(path))
    graph = SystemGraph(config["variables"])
    parts = [f"## {path.stem}", " ".join(_first_comment(path))]
    if unroll := config.get("unroll"):
        parts.append(f"Unrolled to {unroll['steps']} steps:")
        graph = graph.unroll(unroll["loop"], unroll["steps"])
    return "\n\n".join([*parts, f"```mermaid\n{graph.to_mermaid()}\n```"])


def _first_comment(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").strip()


if __name__ == "__main__":
    print(page())
