"""Multiruns: the rows of a table, or a sweep with a folder, a W&B group and a summary of its own.

Hydra hands a multirun's overrides to a sweeper, which turns them into jobs and passes those to a launcher: in this
process, joblib's or submitit's. This sweeper adds to Hydra's own: unions of grids, a run folder named by what is
swept, and that a job which fails is written down while the others go on.
"""

import hashlib
import itertools
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig

from sysdpo import launched
from sysdpo.cli.failures import JobFailed, failed
from sysdpo.cli.schema.check import check_config
from sysdpo.cli.schema.effect import check_effect
from sysdpo.errors import SettingError
from sysdpo.runs.files import write_json, write_text
from sysdpo.runs.folder import RunFolder

TARGET = "hydra_plugins.sysdpo.StudySweeper"
"""The name by which `conf/hydra/sweeper/study.yaml` asks for the sweeper."""

ROW_KEYS = ("method", "seed")
"""What a multirun may vary and still be rows of the table."""


class MultirunFailed(Exception):
    """Some jobs failed: one line for each reason; the exit status is 2 where all are mistakes in settings."""

    def __init__(self, lines: Sequence[str], status: int) -> None:
        super().__init__("\n".join(lines))
        self.lines, self.status = lines, status


@dataclass(frozen=True)
class Job:
    """One job: the overrides Hydra composes it from, its name, and the values that tell it from the others."""

    name: str
    overrides: tuple[str, ...]
    values: Mapping[str, str]


@dataclass(frozen=True)
class Multirun:
    """The jobs of a multirun; `sweep` is the name of its folder, None where the jobs are rows of a table."""

    sweep: str | None
    axes: tuple[str, ...]
    jobs: tuple[Job, ...]


def multirun(
    given: Sequence[Override],
    grids: Sequence[Sequence[Override]],
    rows: Sequence[Override],
    name: str | None,
    logger: str | None,
) -> Multirun:
    """Jobs from the command line's overrides and the config's grids; a key on the command line replaces the grids'.

    Args:
        given: the command line's.
        grids: of a ready-made sweep; none: `given` alone says what is swept.
        rows: swept where `given` sweeps nothing but `ROW_KEYS` and there are no grids.
        name: of the ready-made sweep.
        logger: of a sweep's jobs, where nothing else names one.
    """
    swept = [o.key_or_group for o in given if o.is_sweep_override()]
    if "sweep" in swept:
        raise SettingError("sweep: one ready-made sweep at a time; cross it with settings, as in sweep=beta seed=0,1.")
    is_sweep = bool(grids) or any(key not in ROW_KEYS for key in swept)
    crossed = [_crossed([*grid, *given]) for grid in (grids if is_sweep and grids else [() if is_sweep else rows])]
    points = [point for grid in crossed for point in grid]
    # what tells jobs apart: several values, or a setting that not every grid has
    keys = dict.fromkeys(key for point in points for key in point)
    texts = {key: {point[key].text if key in point else None for point in points} for key in keys}
    axes = [key for key in keys if len(texts[key]) > 1 and key != "seed"]
    short = short_names(axes)
    extra = [key for key in swept if key != "seed" and not any(key == o.key_or_group for grid in grids for o in grid)]
    joined = "+".join(([name] if name else []) + [short_names(extra)[key] for key in extra])
    title = _plain(joined) if is_sweep else None
    fallback = [f"logger={logger}"] if is_sweep and logger and "logger" not in keys else []
    jobs: dict[str, Job] = {}
    for point in points:
        values = {key: point[key].text for key in axes if key in point}
        seed = point["seed"].text if "seed" in point else "0"
        label = _plain(",".join([*(f"{short[key]}={value}" for key, value in values.items()), f"seed={seed}"]))
        overrides = [entry.override for entry in point.values()] + fallback
        if title is not None:
            if "study" not in keys:
                overrides.append(f"study='${{experiment}}/${{scale}}/sweeps/{title}'")
            if "run_folder" not in keys:
                overrides.append(f"run_folder='${{table_folder}}/sweeps/{title}/{label}'")
        jobs.setdefault(label, Job(label, tuple(overrides), values))
    return Multirun(title, tuple(axes), tuple(jobs.values()))


@dataclass(frozen=True)
class _Entry:
    text: str
    override: str


def _crossed(overrides: Sequence[Override]) -> list[dict[str, _Entry]]:
    """The Cartesian product; of two overrides of one key the later one counts."""
    choices: dict[str, list[_Entry]] = {}
    for override in overrides:
        element = override.get_key_element()
        if not override.is_sweep_override():
            entries = [_Entry(_unquoted(override.get_value_element_as_str()), str(override.input_line))]
        elif override.is_discrete_sweep():
            texts = [str(text) for text in override.sweep_string_iterator()]
            entries = [_Entry(_unquoted(text), f"{element}={text}") for text in texts]
        else:
            raise SettingError(f"{override.input_line}: list the values, as in {element}=0.1,0.2.")
        choices[override.key_or_group] = entries
    return [dict(zip(choices, combination, strict=True)) for combination in itertools.product(*choices.values())]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """`sampler.draw.diversity_penalty` -> `diversity_penalty`, unless another key ends alike."""
    last = {key: re.split(r"[./@]", key)[-1] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def _plain(name: str) -> str:
    """A folder's name: other characters become `_`, and what that or its length loses a digest tells apart."""
    plain = re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII)  # a letter is a byte: 255 of them make a file name
    if plain == name and len(name) <= 200:
        return name
    return f"{plain[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class StudySweeper(Sweeper):
    """The sweeper of `conf/hydra/sweeper/study.yaml`, where its settings are explained."""

    def __init__(
        self,
        name: str | None = None,
        grids: Sequence[Mapping[str, Any]] = (),
        logger: str | None = None,
    ) -> None:
        self.name, self.grids, self.logger = name, grids, logger

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context: HydraContext = hydra_context
        self.config: DictConfig = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @classmethod
    def register(cls) -> None:
        """Make it known to Hydra, which takes sweepers of the package `hydra_plugins` only: hence the second name."""
        Plugins.instance().class_name_to_class[TARGET] = cls

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs that the overrides ask for. Rows of a table that its data cannot serve are left to the report.

        Raises:
            MultirunFailed: after all jobs, if one or more failed.
            SettingError: before the first job, if an override has no effect on any of them.
        """
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = multirun(
            parser.parse_overrides(arguments),
            [parser.parse_overrides([f"{k}={v}" for k, v in grid.items()]) for grid in self.grids],
            parser.parse_overrides([f"method={','.join(rows)}"] if (rows := self.config.get("rows")) else []),
            self.name,
            self.logger,
        )
        failures: dict[str, JobFailed] = {}
        folders: dict[str, Path] = {}
        composed: dict[str, DictConfig] = {}
        for job in parsed.jobs:
            try:
                config = self.hydra_context.config_loader.load_sweep_config(self.config, list(job.overrides))
                folders[job.name] = Path(config.run_folder)
                check_config(config)
                composed[job.name] = config
            except Exception as error:
                failures[job.name] = failed(error)
        check_effect(arguments, list(composed.values()))
        logs = next(iter(folders.values())).parent if parsed.sweep and folders else Path(self.config.hydra.sweep.dir)
        logs = logs / "logs"
        try:
            self._launch([job for job in parsed.jobs if job.name in composed], failures)
        finally:
            if launched.is_first():
                for name, failure in failures.items():
                    write_text(logs / f"{name}.log", f"{failure.line}\n\n{failure.details}")
                for job in parsed.jobs:
                    if job.name not in failures:
                        (logs / f"{job.name}.log").unlink(missing_ok=True)
                if parsed.sweep and composed:
                    self._summarise(parsed, composed, folders, failures)
        if parsed.sweep is None:
            failures = _note_unserved(failures, composed, folders, len(parsed.jobs))
        if failures:
            raise MultirunFailed(
                _lines(failures, len(parsed.jobs), logs), 2 if all(f.is_mistake for f in failures.values()) else 1
            )

    def _launch(self, jobs: Sequence[Job], failures: dict[str, JobFailed]) -> None:
        """One after the other in this process, all at once where workers do them; adds to `failures`."""
        alone = type(self.launcher).__name__ == "BasicLauncher"
        if not alone and launched.count() > 1:
            raise SettingError(
                f"hydra/launcher: one process hands out the jobs, but {launched.count()} have been started together; "
                "leave out torchrun, and set hydra.launcher.tasks_per_node for jobs of several processes."
            )
        batches = [[job] for job in jobs] if alone else [list(jobs)] if jobs else []
        # Hydra's own line for each job is its whole command
        logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.WARNING)
        began = time.monotonic()
        for number, batch in enumerate(batches):
            if len(jobs) > 1 and launched.is_first():
                seconds = (time.monotonic() - began) / number * (len(batches) - number) if number else 0.0
                left = f", about {_duration(seconds)} left" if number else ""
                line = f"job {number + 1} of {len(jobs)}{left}: {batch[0].name}" if alone else f"{len(jobs)} jobs"
                print(line, flush=True)
            self._launch_together(batch, number, failures)

    def _launch_together(self, batch: Sequence[Job], number: int, failures: dict[str, JobFailed]) -> None:
        """A worker that is killed takes the others with it: they are then done again, each by itself."""
        try:
            with every_job_reports(self.launcher):
                returns = self.launcher.launch([list(job.overrides) for job in batch], initial_job_idx=number)
        except BrokenExecutor:
            if len(batch) == 1:
                failures[batch[0].name] = JobFailed(
                    f"{batch[0].name}: its process was killed, mostly by the system for want of memory; give it more, "
                    "or run fewer jobs side by side (JOBS=1)",
                    True,
                    "The process ended without a traceback.",
                )
                return
            print(
                f"a worker process was killed, mostly by the system for want of memory: the rows of its {len(batch)} "
                "jobs that are not finished go on one at a time",
                file=sys.stderr,
                flush=True,
            )
            for job in batch:
                self._launch_together([job], number, failures)
            return
        for job, done in zip(batch, returns, strict=True):
            if (failure := _failure(done)) is not None:
                failures[job.name] = failure

    def _summarise(
        self,
        parsed: Multirun,
        configs: Mapping[str, DictConfig],
        folders: Mapping[str, Path],
        failures: Mapping[str, JobFailed],
    ) -> None:
        """`sweep.json`, what was asked for, and from it and the run folders the summary."""
        first = next(iter(configs.values()))
        folder = next(iter(folders.values())).parent
        titles = first.get("metric_titles") or {}
        content = {
            "name": parsed.sweep,
            "experiment": first.experiment,
            "scale": first.scale,
            "metrics": {metric: titles.get(metric, metric) for metric in first.metrics},
            "axes": short_names(parsed.axes),
            "jobs": [
                {
                    "name": job.name,
                    "values": dict(job.values),
                    "folder": str(folders.get(job.name, folder / job.name)),
                    "error": failures[job.name].line if job.name in failures else None,
                }
                for job in parsed.jobs
            ],
        }
        write_json(folder / "sweep.json", content)
        from sysdpo.reporting.sweep_summary import summarise  # matplotlib: half a second that only this needs

        print(summarise(folder))


@contextmanager
def every_job_reports(launcher: Launcher) -> Iterator[None]:
    """Inside, a job of submitit's that ends without a result has failed, and hides no other's; elsewhere as it is."""
    if "BaseSubmititLauncher" not in (each.__name__ for each in type(launcher).__mro__):
        yield
        return
    from submitit.core import core
    from submitit.core.utils import FailedJobError, UncompletedJobError

    jobs: Any = core.Job
    results = jobs.results

    def reported(job: Any) -> list[Any]:
        try:
            return list(results(job))
        except (FailedJobError, UncompletedJobError) as error:
            line = (
                f"job {job.job_id} ended without a result ({job.state.lower()}), cancelled or killed, mostly for want "
                f"of memory or time; what it wrote: {job.paths.stderr}. The same command goes on from its checkpoint"
            )
            done = JobReturn(status=JobStatus.FAILED)
            done.return_value = JobFailed(line, True, str(error))
            return [done]

    jobs.results = reported
    try:
        yield
    finally:
        jobs.results = results


def is_collected(config: Any) -> bool:
    """Whether a job's failure goes to this sweeper (`HydraConfig.get()`), which reports all of them at the end."""
    return bool(config.mode == RunMode.MULTIRUN and config.sweeper.get("_target_") == TARGET)


def _note_unserved(
    failures: Mapping[str, JobFailed], configs: Mapping[str, DictConfig], folders: Mapping[str, Path], total: int
) -> dict[str, JobFailed]:
    """Rows that the data cannot serve are told to the report; what is left are failures. All of them are one, too."""
    unserved = {name: failure for name, failure in failures.items() if failure.is_unserved}
    for name, failure in unserved.items() if launched.is_first() else ():
        print(f"not served by dataset={configs[name].dataset.name}: {name}: {failure.line}", flush=True)
        RunFolder(folders[name]).note_unserved(configs[name].dataset.name, failure.line)
    served = {name: failure for name, failure in failures.items() if name not in unserved}
    return served if len(unserved) < total else dict(failures)


def _failure(done: JobReturn) -> JobFailed | None:
    if done.status is not JobStatus.FAILED:
        return None
    error = done._return_value  # the property raises it
    return error if isinstance(error, JobFailed) else failed(error)


def _lines(failures: Mapping[str, JobFailed], total: int, logs: Path) -> list[str]:
    """One line for each reason: what it is, how many jobs it stopped, where their logs are."""
    reasons: dict[str, list[str]] = {}
    for name, failure in failures.items():
        reasons.setdefault(failure.line, []).append(name)
    lines = []
    for line, names in reasons.items():
        more = f" and {len(names) - 1} more there" if len(names) > 1 else ""
        lines.append(f"{line} ({len(names)} of {total} jobs; log: {logs / names[0]}.log{more})")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
