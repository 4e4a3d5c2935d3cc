"""A system's outputs on the evaluation rows, and what the experiment measures of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image

from sysdpo import processes
from sysdpo.data.records import PreferenceData
from sysdpo.data.storage import made_once
from sysdpo.evaluation.measures import Measure
from sysdpo.experiment.build import digest, untrained, untrained_system
from sysdpo.progress import progress
from sysdpo.runs.files import is_summed, replacing, write_json, write_jsonl, write_summed
from sysdpo.runs.folder import read_jsonl
from sysdpo.seeds import stream
from sysdpo.system import CompoundSystem

BASELINE = 1_000_000
"""The place of the baseline's stream among a seed's: far from every row's."""


def curve_point(
    config: DictConfig, system: CompoundSystem, rows: list[dict[str, Any]], measure: Measure
) -> dict[str, float]:
    """The experiment's metrics on some evaluation rows, and as `<metric>/se` their standard errors over these rows.

    A baseline is the untrained system's output on the same rows, drawn by itself. Every point has the same seeds.
    """
    repeated = [row for row in rows for _ in range(measure.draws)]
    baseline = untrained_outputs(config, system, rows) if measure.needs_baseline else None
    outputs = generate(system, repeated, config.seed, config.evaluation_batch_size, "curve")
    metrics, _ = measure.measure(repeated, outputs, baseline)
    found = {name: metrics[name] for name in config.metrics if name in metrics}
    errors = {f"{name}/se": float(each["se"]) for name, each in found.items() if each.get("se") is not None}
    return {name: float(each["value"]) for name, each in found.items()} | errors


def evaluate(
    config: DictConfig, system: CompoundSystem, data: PreferenceData, measure: Measure | None, folder: Path
) -> dict[str, Any]:
    """Run the system on the evaluation rows and measure what comes out."""
    if measure is None or not data.evaluation:
        return {}
    rows = [row for row in data.evaluation for _ in range(measure.draws)]
    baseline = untrained_outputs(config, system, data.evaluation) if measure.needs_baseline else None
    if baseline is not None and not system.trainable and measure.draws == 1:
        outputs = baseline
    else:
        outputs = generate(system, rows, config.seed, config.evaluation_batch_size, "evaluate")
    metrics, judged = measure.measure(rows, outputs, baseline)
    processes.by_first(lambda: _keep_samples(judged, folder / "samples"))
    return metrics


def _keep_samples(judged: list[dict[str, Any]], samples: Path) -> None:
    pictured = sorted({key for record in judged for key, value in record.items() if isinstance(value, Image.Image)})
    write_json(samples / "pictures.json", {"fields": pictured})  # text may look like a file name: it is none
    write_jsonl(samples / "evaluation.jsonl", [_with_pictures(record, samples) for record in judged])


def _with_pictures(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A record whose pictures are files beside it, by name."""
    plain = dict(record)
    for key, picture in record.items():
        if isinstance(picture, Image.Image):
            plain[key] = f"{record['row']:04d}.png"
            with replacing(folder / plain[key]) as fresh:
                picture.save(fresh, "PNG")
    return plain


def untrained_outputs(config: DictConfig, system: CompoundSystem, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The untrained system's answers under this seed, made once for all rows of a table.

    They are drawn from a stream of their own. From the rows' own stream, a row whose first model is untrained would
    meet an answer to the very draft that it answers: a win rate between dependent answers, and a higher one.
    """
    seed = stream(config.seed, BASELINE)
    made_by = [
        untrained_system(config),
        seed,
        [[row[v.name] for v in system.graph.inputs] for row in rows],
    ]
    if config.get("evaluation_system") is not None:
        made_by.append(OmegaConf.to_container(config.evaluation_system, resolve=True))
    path = Path(config.data_folder) / f"untrained-{digest(*made_by)}.jsonl"
    with made_once(path, path, lambda: None if is_summed(path) else "is damaged") as missing:
        if missing:
            what = "evaluate the untrained system"
            with untrained(system):
                outputs = generate(system, rows, seed, config.evaluation_batch_size, what)
            answers = [{v.name: row[v.name] for v in system.graph} for row in outputs]
            processes.by_first(lambda: write_summed(path, answers))
    return read_jsonl(path)


def generate(
    system: CompoundSystem,
    rows: Sequence[dict[str, Any]],
    seed: int,
    batch_size: int,
    description: str,
    only: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """One run of the system for each row; row i is drawn from the i-th stream of `seed`.

    `only`: the variables to draw, all others being in the rows; None: all that are generated.
    """
    given = [v.name for v in (system.graph.inputs if only is None else system.graph) if v.name not in (only or ())]
    turns = processes.turns(len(rows), batch_size)
    outputs: list[dict[str, Any]] = []
    for own in progress(turns, description, total=len(turns)):
        inputs = [{name: rows[i][name] for name in given} for i in own]
        outputs += processes.joined(system.generate(inputs, [stream(seed, i) for i in own], only=only))
    return outputs
