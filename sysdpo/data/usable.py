"""Pairs that a system can learn from: values of the right kind, prompts that fit, answers that differ.

What is dropped is counted by reason; what is refused names its row, before anything is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sysdpo.components.text.conversation import Conversation
from sysdpo.data.records import Understood, prompt_key, refuse
from sysdpo.errors import SettingError, TooLong, nearest
from sysdpo.system import CompoundSystem, Pair

OVERLONG = ("error", "drop", "cut")
BAD_ROWS = ("error", "drop")
AFTER_CUT = "equal answers once cut to max_new_tokens"

PICTURE_LIMIT = 64 * 2**20
"""Bytes of a picture's file."""


def keep_usable(
    found: Understood,
    system: CompoundSystem,
    *,
    needs_intermediates: bool,
    overlong: str = "error",
    drop_bad: bool = False,
    folder: Path | None = None,
) -> Understood:
    """The pairs that can be trained on, whose pictures are bytes; the rest dropped or refused.

    Args:
        overlong: what becomes of a prompt that exceeds a model's context, drafts counted at their longest: `error`,
            `drop`, or `cut` (see `cut`).
        folder: where pictures that are only named may lie; None: nowhere.
    """
    if overlong not in OVERLONG:
        raise SettingError(f"dataset.overlong: {nearest(overlong, OVERLONG)}")
    pairs: list[Pair] = []
    bad: list[tuple[int, SettingError]] = []
    long: list[tuple[int, SettingError]] = []
    shortened: list[int] = []
    for given in found.pairs:
        number = given.index + 1
        try:
            pair = _with_pictures(given, system, folder)
            check(pair, system)
        except TooLong as error:
            shorter = cut(pair, system) if overlong == "cut" else None
            if shorter is None:
                long.append((number, error))
                continue
            shortened.append(number)
            pair = shorter
        except SettingError as error:
            bad.append((number, error))
            continue
        if reason := no_preference(pair, system, needs_intermediates):
            found.drop(reason, number)
        else:
            pairs.append(pair)
    total = len(found.pairs)
    refuse(bad, drop_bad, found, total=total)
    refuse(long, overlong == "drop", found, "overlong", total=total)
    found.pairs = pairs
    if shortened:
        found.remarks.append(f"{len(shortened)} prompts are cut to the context: {_rows(shortened)}")
    found.remarks += [*_opposites(pairs), *_duplicates(pairs)]
    if not pairs:
        remedy = "raise max_new_tokens" if AFTER_CUT in found.dropped else "every pair needs two answers that differ"
        raise SettingError(f"the data set has no pair to learn from: {reasons(found)}; {remedy}.")
    return found


def check(pair: Pair, system: CompoundSystem) -> None:
    """Refuse a pair that a component could not score."""
    for side in ("chosen", "rejected"):
        system.check_row(pair.row(side))


def reasons(found: Understood) -> str:
    """`2 equal answers, 1 a tie by the data (status: tie)`."""
    return (
        ", ".join(f"{len(rows)} {reason} ({_rows(rows)})" for reason, rows in found.dropped.items()) or "none dropped"
    )


def _rows(numbers: Sequence[int]) -> str:
    more = " …" if len(numbers) > 3 else ""
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:3]))}{more}"


# ---- pairs that prefer nothing ---------------------------------------------------------------------------------------


def no_preference(pair: Pair, system: CompoundSystem, needs_intermediates: bool) -> str | None:
    """Why a pair prefers nothing: both sides are one to every component that is compared."""
    compared = system.graph.generated if needs_intermediates else system.graph.finals
    values = [(pair.chosen.get(v.name), pair.rejected.get(v.name)) for v in compared]
    if all(better == worse for better, worse in values):
        return "both answers are empty" if all(better == "" for better, _ in values) else "equal answers"
    for variable, (better, worse) in zip(compared, values, strict=True):
        names = variable.may_draw(pair.row("chosen"))
        if better is None or worse is None or len(names) != 1 or isinstance(better, list) or isinstance(worse, list):
            if better != worse:
                return None
        elif not system.component(names[0]).same(better, worse):
            return None
    return AFTER_CUT


def _opposites(pairs: Sequence[Pair]) -> list[str]:
    """What contradicts: one prompt, the same two answers, each preferred once."""
    seen: dict[object, int] = {}
    found = []
    for pair in pairs:
        key, (better, worse) = prompt_key(pair), (_side_key(pair.chosen), _side_key(pair.rejected))
        if (key, worse, better) in seen:
            found.append((seen[key, worse, better], pair.index + 1))
        seen.setdefault((key, better, worse), pair.index + 1)
    if not found:
        return []
    first = f"rows {found[0][0]} and {found[0][1]}"
    return [f"{len(found)} pairs contradict another one ({first} prefer opposite answers to one prompt): all are taken"]


def _duplicates(pairs: Sequence[Pair]) -> list[str]:
    keys = [(prompt_key(p), _side_key(p.chosen), _side_key(p.rejected)) for p in pairs]
    repeated = len(keys) - len(set(keys))
    return [f"{repeated} pairs repeat an earlier one: all are taken"] if repeated else []


def _side_key(side: Mapping[str, Any]) -> object:
    return tuple(sorted((name, _key(value)) for name, value in side.items()))


def _key(value: Any) -> object:
    return value if isinstance(value, str | bytes) else repr(value)


# ---- prompts that are too long ---------------------------------------------------------------------------------------


def cut(pair: Pair, system: CompoundSystem) -> Pair | None:
    """The pair with inputs that fit: first a conversation's oldest rounds go, then the end of the longest text.

    None where no cut of the inputs helps.
    """
    while (shorter := _without_oldest(pair)) is not None:
        pair = shorter
        if _fits(pair, system):
            return pair
    texts = {name: _question(value) for name, value in pair.inputs.items() if isinstance(value, str)}
    if not texts:
        return None
    name = max(texts, key=lambda n: len(texts[n]))
    if not _fits(_shortened(pair, name, 0), system):
        return None
    kept, too_many = 0, 256
    while too_many < len(texts[name]) and _fits(_shortened(pair, name, too_many), system):
        kept, too_many = too_many, 2 * too_many
    too_many = min(too_many, len(texts[name]))
    while too_many - kept > 1:
        middle = (kept + too_many) // 2
        kept, too_many = (middle, too_many) if _fits(_shortened(pair, name, middle), system) else (kept, middle)
    return _shortened(pair, name, kept) if kept else None


def _fits(pair: Pair, system: CompoundSystem) -> bool:
    try:
        check(pair, system)
    except TooLong:
        return False
    return True


def _without_oldest(pair: Pair) -> Pair | None:
    for name, value in pair.inputs.items():
        if isinstance(value, Conversation):
            turns = list(value.turns)
            first = next(i for i, turn in enumerate(turns) if turn.role != "system")
            if first < len(turns) - 1:
                following = next(i for i in range(first + 1, len(turns)) if turns[i].role == "user")
                rest = Conversation(turns[:first] + turns[following:])
                return replace(pair, inputs={**pair.inputs, name: rest})
    return None


def _question(value: str) -> str:
    return value.question if isinstance(value, Conversation) else value


def _shortened(pair: Pair, name: str, length: int) -> Pair:
    value = pair.inputs[name]
    text: str = _question(value)[:length].rstrip()
    if isinstance(value, Conversation):
        text = Conversation([*value.turns[:-1], value.turns[-1]._replace(content=text)])
    return replace(pair, inputs={**pair.inputs, name: text})


# ---- pictures --------------------------------------------------------------------------------------------------------


def _with_pictures(pair: Pair, system: CompoundSystem, folder: Path | None) -> Pair:
    """Pictures that are only named become the bytes of their files, which must lie in the data set's own folder."""
    drawn = [v.name for v in system.graph.generated if any(system.component(n).draws == "image" for n in v.components)]
    if not drawn:
        return pair
    sides = [
        {name: _picture(value, name, folder) if name in drawn else value for name, value in side.items()}
        for side in (pair.chosen, pair.rejected)
    ]
    return replace(pair, chosen=sides[0], rejected=sides[1])


def _picture(value: Any, variable: str, folder: Path | None) -> Any:
    if isinstance(value, list | tuple):
        return [_picture(v, variable, folder) for v in value]
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        value = value["bytes"] if value["bytes"] is not None else value["path"]
    if not isinstance(value, str):
        return value
    if folder is None:
        raise SettingError(f", {variable}: the picture {value!r} is not in the data; store its bytes")
    root = folder.resolve()
    try:
        path = (root / value).resolve()
        inside = path.is_relative_to(root)
        exists = inside and path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        inside, exists = True, False
    if not inside:
        raise SettingError(f", {variable}: {value!r} lies outside the data set's folder; put the picture into it")
    if not exists:
        raise SettingError(f", {variable}: there is no file {value!r} in the data set's folder")
    if path.stat().st_size > PICTURE_LIMIT:
        raise SettingError(f", {variable}: {value!r} has more than {PICTURE_LIMIT // 2**20} MB")
    return path.read_bytes()
