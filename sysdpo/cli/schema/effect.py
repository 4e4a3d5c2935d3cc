"""An override that changes nothing of a run is a mistake: the run would be taken for another one than it is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from sysdpo.errors import SettingError
from sysdpo.paths import CONF

READ = (
    *("seed", "beta", "train", "trainer", "evaluation", "labels", "curve_rows", "evaluation_batch_size"),
    *("outputs", "table_folder", "run_folder", "data_folder", "study", "experiment", "scale", "method"),
    *("rows", "sheets", "metrics", "metric_titles", "title", "paper", "figures", "contrasts"),
    *("system", "evaluation_system", "dataset", "objective", "training", "distributed"),
    *("logger", "plan", "benchmark", "hydra"),
)
"""What commands read of a config by name. All else is there to be referred to: ${llm}, ${sampler}, ${best_of}."""

GLOBAL = ("setting", "sweep", "scale", "experiment", "method")
"""Groups whose options set keys all over the config."""

REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([\w-]+)")


def check_effect(given: Sequence[str], configs: Sequence[DictConfig]) -> None:
    """Refuse an override of something that none of these configs refers to.

    Args:
        given: overrides of the command line, as typed.
        configs: what they were composed to: one, or every job of a multirun.

    Raises:
        SettingError: names the override, and the choices that would use it.
    """
    used = set(READ).union(*(_used(config) for config in configs))
    for override in OverridesParser.create().parse_overrides(list(given)):
        name = _place(override)
        if name is None or name in used or not configs:
            continue
        here = f"experiment={configs[0].get('experiment')}, {_rows(configs)}"
        raise SettingError(
            f"{override.input_line}: has no effect, because nothing here uses {name} ({here}); leave it out"
            f"{_remedy(name)}."
        )


def _used(config: DictConfig) -> set[str]:
    """The keys at the top that commands read, and what these refer to, directly or not."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    used: set[str] = set()
    waiting = [name for name in content if name in READ]
    while waiting:
        name = waiting.pop()
        if name not in used:
            used.add(name)
            waiting += _references(content.get(name))
    return used


def _references(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield from REFERENCE.findall(value)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _place(override: Override) -> str | None:
    """The key at the top that an override sets; None for groups that set keys all over."""
    if override.is_delete() or override.key_or_group in GLOBAL or "/" in override.key_or_group:
        return None
    return (override.package or override.key_or_group).split(".")[0]


def _rows(configs: Sequence[DictConfig]) -> str:
    methods = dict.fromkeys(str(OmegaConf.select(config, "method.name")) for config in configs)
    return f"method={','.join(methods)}"


def _remedy(name: str) -> str:
    """Who would use it, of the options that ship."""
    pattern = re.compile(rf"\$\{{{re.escape(name)}[}}.]")
    groups = ("objective", "experiment", "system")
    files = [file for group in groups for file in sorted((CONF / group).glob("*.yaml"))]
    users = [f"{f.parent.name}={f.stem}" for f in files if pattern.search(f.read_text(encoding="utf-8"))]
    return f", or choose what uses it: {', '.join(users[:3])}" if users else ""
