"""Every key of a composed config is checked here, right after composition: type, range, and the names it refers to.

Nothing is imported or loaded for it. What a part takes is read from its class's annotations (`signatures`), the
limits of numbers and texts stand in `sysdpo.limits`. A user's own part is checked as far as its annotations go.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sysdpo.cli.schema.kinds import Kind, refusal
from sysdpo.cli.schema.limits import (
    BENCHMARK,
    COMPONENT,
    DATASET,
    DESCRIBED,
    DISTRIBUTED,
    DIVIDED,
    HANDED_ON,
    METHOD,
    NESTED,
    PLAN,
    SYSTEM,
    TOP,
    UNROLL,
    VARIABLE,
)
from sysdpo.cli.schema.signatures import Signature, signature
from sysdpo.components.names import check_component_name
from sysdpo.errors import SettingError, nearest
from sysdpo.graph import SystemGraph
from sysdpo.limits import ITEMS, NO_LIMITS, WHOLE, limits_of

HYDRA_S = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")

CONVERSIONS = ("none", "partial", "object", "all")

REFERRING = ("objective", "evaluation", "labels", "dataset", "logger")
"""Checked last: a setting is named by its own place, not by that of who refers to it."""

GIVEN_BY_RUN = {"training": ("beta", "seed")}
"""Settings of a class that the run fills in from elsewhere."""


def check_config(config: DictConfig) -> None:
    """Refuse the first wrong setting of a composed config.

    Raises:
        SettingError: names the setting, its value and what it must be.
        GraphError: the system's variables make no graph.
    """
    check_settings(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def check_settings(content: Mapping[str, Any]) -> None:
    """The same of a resolved config as plain data."""
    _check_some(content, TOP)
    for name in ("training", "bound"):
        if isinstance(content.get(name), Mapping) and "_target_" not in content[name]:
            _check_keys(name, content[name], _of_class(DESCRIBED[name], GIVEN_BY_RUN.get(name, ())))
    parts = {"method": METHOD, "distributed": DISTRIBUTED, "plan": PLAN, "benchmark": BENCHMARK}
    for name, kinds in {**parts, "prompt": NESTED["prompt"]}.items():
        if isinstance(content.get(name), Mapping):
            _check_some(content[name], kinds, name)
    for name in sorted(content, key=lambda name: name in REFERRING):
        if name != "system":
            _check_parts(name, content[name])
    if "system" in content:
        graph = _check_system(content["system"])
        for name in content.get("train") or ():
            if name not in graph.components:
                raise SettingError(f"train: {nearest(name, graph.components)}")


def _check_system(system: Mapping[str, Any]) -> SystemGraph:
    _check_some(system, SYSTEM, "system")
    for key in ("variables", "components"):
        if not isinstance(system.get(key), Mapping):
            raise SettingError(f"system.{key} is not set; a system has variables and components (docs/systems.md).")
    for name, variable in system["variables"].items():
        _check_some(variable, VARIABLE, f"system.variables.{name}")
    graph = SystemGraph(system["variables"], system["components"])
    if system.get("unroll"):
        for key in UNROLL:
            if key not in system["unroll"]:
                raise SettingError(f"system.unroll.{key} is not set; unroll takes loop and steps.")
        _check_keys("system.unroll", system["unroll"], Signature(UNROLL))
        graph = graph.unroll(system["unroll"]["loop"], system["unroll"]["steps"])
    for name, component in system["components"].items():
        check_component_name(str(name))
        place = f"system.components.{name}"
        model = component.get("model", {})
        _check(f"{place}.model", model, TOP["method"])
        if "_target_" not in component and "_target_" not in model:
            raise SettingError(f"{place}: neither it nor its model has a _target_; write model: ${{llm}}, or a class.")
        _check_some(component, COMPONENT, place)
        settings = {key: value for key, value in component.items() if key != "model" and key not in COMPONENT}
        _check_parts(place, {**model, **settings})
    return graph


def _check_parts(place: str, value: Any) -> None:
    """Every mapping with a `_target_`, at whatever depth, against what that takes."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            _check_target(place, value)
        for key, each in value.items():
            _check_parts(f"{place}.{key}", each)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _check_parts(f"{place}[{number}]", each)


def _check_target(place: str, part: Mapping[str, Any]) -> None:
    target = part["_target_"]
    if not isinstance(target, str) or "." not in target:
        raise SettingError(f"{place}._target_={target!r}: must be the name of a class, package.module.Class.")
    for key in ("_partial_", "_recursive_"):
        if key in part and not isinstance(part[key], bool):
            raise SettingError(f"{place}.{key}={part[key]!r}: must be true or false.")
    if part.get("_convert_", "none") not in CONVERSIONS:
        raise SettingError(f"{place}._convert_={part['_convert_']!r}: must be {' or '.join(CONVERSIONS)}.")
    known = _taken_by(target)
    if known is not None:
        own = DATASET if place == "dataset" else {}
        _check_some(part, own, place)
        _check_keys(place, {k: v for k, v in part.items() if k not in HYDRA_S and k not in own}, known, target)
    if isinstance(part.get("architecture"), Mapping) and "pretrained" in part:
        _check_architecture(f"{place}.architecture", part["architecture"], alone=part["pretrained"] is None)


def _check_architecture(place: str, sizes: Mapping[str, Any], alone: bool) -> None:
    """What sizes must be to each other; `alone`: there is no pretrained model that null could stand for."""
    for key, value in sizes.items():
        if value is None and alone:
            raise SettingError(
                f"{place}.{key}=None: must be given, because there is no pretrained model to take it from."
            )
        for name, each in _mappings(f"{place}.{key}", value):
            _check_architecture(name, each, alone)
    for whole, part in DIVIDED:
        if isinstance(a := sizes.get(whole), int) and isinstance(b := sizes.get(part), int) and a % b:
            raise SettingError(f"{place}.{whole}={a}: must be a multiple of {part}={b}.")


def _taken_by(target: str) -> Signature | None:
    known = signature(target)
    if known is not None and (next_ := HANDED_ON.get(target)) is not None:
        below = _taken_by(next_)
        return None if below is None else Signature({**below.keys, **known.keys}, below.rest)
    return known


def _of_class(target: str, given: tuple[str, ...]) -> Signature:
    known = signature(target)
    if known is None:
        raise SettingError(f"{target}: its source is not there; reinstall sysdpo.")
    return Signature({key: kind for key, kind in known.keys.items() if key not in given})


def _check_keys(place: str, part: Mapping[str, Any], known: Signature, target: str = "") -> None:
    for key, value in part.items():
        if key not in known.keys:
            if known.rest:
                continue
            raise SettingError(f"{place}: {nearest(str(key), known.keys)}")
        kind = known.keys[key]
        _check(
            f"{place}.{key}", value, kind if target == "" and kind.limits != NO_LIMITS else _limited(key, kind, target)
        )
        if isinstance(value, Mapping) and "_target_" not in value:
            if key in NESTED:
                _check_some(value, NESTED[key], f"{place}.{key}")
            elif key in DESCRIBED:
                _check_keys(f"{place}.{key}", value, _of_class(DESCRIBED[key], ()))


def _limited(key: str, kind: Kind, target: str) -> Kind:
    """The kind with the limits of its name, those of its class before the general ones."""
    owner = target.rpartition(".")[2]
    limits, items = limits_of(key, owner), ITEMS.get(f"{owner}.{key}", ITEMS.get(key))
    if limits is None and "whole" in kind.forms:
        limits = WHOLE
    return replace(kind, limits=limits or kind.limits, item_limits=items or kind.item_limits)


def _check_some(part: Mapping[str, Any], kinds: Mapping[str, Kind], place: str = "") -> None:
    """Keys that are described; deeper mappings of a foreign library by the same names."""
    for key, value in part.items():
        if key in kinds:
            _check(f"{place}.{key}" if place else key, value, kinds[key])
        if place.endswith("architecture") or ".architecture." in f"{place}.":
            for name, each in _mappings(f"{place}.{key}", value):
                _check_some(each, kinds, name)


def _mappings(place: str, value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        return [(place, value)]
    if isinstance(value, list):
        return [(f"{place}[{i}]", each) for i, each in enumerate(value) if isinstance(each, Mapping)]
    return []


def _check(place: str, value: Any, kind: Kind) -> None:
    if isinstance(value, str) and value == "???":
        return  # what has to be given is asked for where it is used
    if (found := refusal(kind, value)) is None:
        return
    inside, why = found
    shown = _at(value, inside)
    text = str(shown).encode("utf-8", "backslashreplace").decode()
    text = text if len(text) <= 80 else f"{text[:77]}…"
    line = f"{place}{inside}={text}: {why}" if not why.startswith("unknown ") else f"{place}{inside}: {why}"
    raise SettingError(line if line.endswith(".") else f"{line}.")


def _at(value: Any, inside: str) -> Any:
    """The offending item itself, where it lies one level down; the whole value otherwise."""
    if inside.startswith("[") and inside.endswith("]") and inside[1:-1].isdigit():
        return value[int(inside[1:-1])]
    return value.get(inside[1:], value) if inside.startswith(".") and isinstance(value, Mapping) else value
