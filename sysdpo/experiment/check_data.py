"""What is understood of a data set: format, rows, lengths, dropped rows, three examples as the models see them."""

from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.components.text.conversation import Conversation
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.data.records import Understood
from sysdpo.data.sources import Recorded, split, summary
from sysdpo.data.storage import fingerprint
from sysdpo.errors import SettingError
from sysdpo.experiment.build import build_system
from sysdpo.experiment.downloads import check_models
from sysdpo.graph import Variable
from sysdpo.system import CompoundSystem, Pair

EXAMPLES = 3
SHOWN = 1_500
"""Characters of a prompt or an answer that an example shows."""


def check_data(config: DictConfig) -> str:
    """The report on `dataset`, read as a run of this configuration would read it."""
    if not str(config.dataset.get("_target_")).endswith(".Recorded"):
        raise SettingError(
            f"dataset={config.dataset.name}: is made by sampling, so there is no file to check; name one: "
            "dataset=jsonl dataset.path=FILE"
        )
    content: dict[str, Any] = OmegaConf.to_container(config.dataset, resolve=True)  # type: ignore[assignment]
    source: Recorded = instantiate({k: v for k, v in content.items() if k != "name"})
    rows = source.rows()
    check_models(config)
    system = build_system(config)
    needs_intermediates = bool(instantiate(config.objective).needs_intermediates)
    found = source.read(system, needs_intermediates, rows)
    return "\n".join(_report(source, system, found, len(rows), fingerprint(rows), needs_intermediates))


def _report(
    source: Recorded, system: CompoundSystem, found: Understood, rows: int, content: str, direct: bool
) -> list[str]:
    where = source.path or source.hub
    lines = [
        f"{where}: {rows} rows",
        f"read as: {summary(found)}, for {'SysDPO-Direct' if direct else 'SysDPO-Sampling'}",
        f"content: {content}",
        "",
        "dropped rows:" if found.dropped else "dropped rows: none",
    ]
    for reason, numbers in found.dropped.items():
        shown = ", ".join(map(str, numbers[:10])) + (" …" if len(numbers) > 10 else "")
        lines.append(f"  {len(numbers):>7}  {reason} (row {shown})")
    notes = [*found.remarks, *_blanks(found.pairs), *_control_tokens(system, found.pairs)]
    lines += ["notes:", *(f"  {note}" for note in notes)] if notes else []
    lines += ["", "lengths in tokens", *_lengths(system, found.pairs)]
    data = split(found.pairs, source.evaluation, source.validation, source.seed, source.limit)
    lines += [
        "",
        f"split by prompt: {len(data.train)} pairs to train on, {len(data.validation)} to stop by, "
        f"{len(data.evaluation)} rows to be judged on",
    ]
    for number, pair in enumerate(found.pairs[:EXAMPLES], 1):
        lines += ["", f"example {number} (row {pair.index + 1})", *_example(system, pair)]
    return lines


def _blanks(pairs: Sequence[Pair]) -> list[str]:
    """What is read as it stands and may not be meant."""
    texts = {"prompts": [list(p.inputs.values()) for p in pairs]}
    texts |= {side: [list(getattr(p, side).values()) for p in pairs] for side in ("chosen", "rejected")}
    found = []
    for name, rows in texts.items():
        flat = [[str(v) for v in row if isinstance(v, str)] for row in rows]
        what = name if name == "prompts" else f"{name} answers"
        empty = sum(any(not v for v in row) for row in flat)
        blank = sum(any(v and not v.strip() for v in row) for row in flat)
        edged = sum(any(v.strip() and v != v.strip() for v in row) for row in flat)
        found += [f"{empty} {what} are empty"] if empty else []
        found += [f"{blank} {what} are nothing but blanks"] if blank else []
        found += [f"{edged} {what} begin or end with blanks, which are kept"] if edged else []
    return found


def _control_tokens(system: CompoundSystem, pairs: Sequence[Pair]) -> list[str]:
    """Texts that a chat template was applied to already: a model sees its control tokens spelt out."""
    models = [m for name in system.components if isinstance(m := system.component(name), LanguageModel)]
    names = {token for model in models for token in model.codec.template.control}
    held = {
        number: token
        for number, pair in enumerate(pairs)
        for value in (*pair.inputs.values(), *pair.chosen.values(), *pair.rejected.values())
        for token in names
        if isinstance(value, str) and token in value
    }
    if not held:
        return []
    row, token = next(iter(held.items()))
    return [
        f"{len(held)} pairs hold control tokens ({token} in row {pairs[row].index + 1}), which are read as text: give "
        "turns, not a text that a chat template has written"
    ]


def _calls(
    system: CompoundSystem, variable: Variable, pair: Pair, side: str
) -> list[tuple[LanguageModel, dict[str, Any]]]:
    """The language models that draw a variable, with its parents; what is still to be drawn stays empty."""
    row = pair.row(side)
    if variable.plate is not None and not system.graph.opens_plate(variable.name):
        return []
    parents = {alias: row.get(name, "") for alias, name in variable.parents}
    found = [system.component(name) for name in variable.may_draw(row)]
    return [(component, parents) for component in found if isinstance(component, LanguageModel)]


def _lengths(system: CompoundSystem, pairs: Sequence[Pair]) -> list[str]:
    head = f"  {'':<24}{'least':>8}{'median':>8}{'most':>8}"
    lines = [head]
    for variable in system.graph.generated:
        prompts: list[int] = []
        answers: list[int] = []
        limit = 0
        for pair in pairs:
            for side in ("chosen", "rejected"):
                for component, parents in _calls(system, variable, pair, side):
                    limit = component.codec.max_new_tokens
                    prompts.append(len(component.codec.prompt_ids(parents)))
                    value = pair.row(side).get(variable.name)
                    if isinstance(value, str):
                        answers.append(component.codec.count(value))
        lines += _line(f"prompt of {variable.name}", prompts)
        lines += _line(f"{variable.name} in the data", answers)
        if longer := sum(length > limit for length in answers):
            lines.append(f"    {longer} of {len(answers)} are longer than max_new_tokens={limit} and are cut there")
    return lines


def _line(name: str, lengths: Sequence[int]) -> list[str]:
    if not lengths:
        return []
    ordered = sorted(lengths)
    return [f"  {name:<24}{ordered[0]:>8}{ordered[len(ordered) // 2]:>8}{ordered[-1]:>8}"]


def _example(system: CompoundSystem, pair: Pair) -> list[str]:
    lines: list[str] = []
    for variable in system.graph.generated:
        for component, parents in _calls(system, variable, pair, "chosen")[:1]:
            missing = [name for _, name in variable.parents if name not in pair.row("chosen")]
            draft = f" ({', '.join(missing)} still to be drawn)" if missing else ""
            ids = component.codec.prompt_ids(parents)
            lines += [f"  {variable.name} is asked{draft}:", *_block(str(component.codec.tokenizer.decode(list(ids))))]
    for side in ("chosen", "rejected"):
        for name, value in (pair.chosen if side == "chosen" else pair.rejected).items():
            lines += [f"  {side} {name}:", *_block(_shown(value))]
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"a picture of {len(value)} bytes"
    if isinstance(value, list | tuple):
        return "\n".join(_shown(v) for v in value)
    return str(value) if isinstance(value, str | Conversation) else repr(value)


def _block(text: str) -> list[str]:
    """Indented, with what a terminal would act on written out."""
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]} … ({len(text)} characters)"
    visible = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return [f"    | {line}" for line in visible.split("\n")]
