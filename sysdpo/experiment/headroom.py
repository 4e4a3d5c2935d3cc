"""What could a component still gain? Its variable is drawn again and again while everything else stays as it was."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.errors import SettingError, nearest
from sysdpo.experiment.build import build_system
from sysdpo.experiment.evaluate import generate
from sysdpo.runs.folder import RunFolder


def headroom(config: DictConfig) -> str:
    """Redraw a variable of a finished run's evaluation samples and measure the outputs.

    Args:
        config: `conf/headroom.yaml`.

    Returns:
        A line for each metric: how much of its variance lies between rows, so is decided by what was held fixed, and
        what the best of the draws would reach, which no training of the component that draws them can count on.

    Raises:
        SettingError: there is no such finished run, its samples lack a variable, or its measure compares systems.
    """
    run = RunFolder(Path(config.run))
    if run.config is None or run.metrics is None:
        raise SettingError(f"run={run.path}: there is no finished run in this folder.")
    if config.draws < 2:
        raise SettingError(f"draws={config.draws}: must be at least 2; a variance needs two.")
    own = OmegaConf.create(run.config)
    measure = instantiate(own.evaluation)
    if measure.needs_baseline or measure.draws != 1:
        raise SettingError(f"run={run.path}: its measure compares several outputs; name a run that draws one a row.")
    system = build_system(own)
    finals = [v.name for v in system.graph.finals]
    redrawn = config.variable or finals[0]
    if redrawn not in finals:
        raise SettingError(f"variable: {nearest(redrawn, finals)}")
    system.restore(run.path / "adapters")
    samples = run.samples
    for row in samples:
        for v in system.graph:
            if v.name != redrawn and v.name not in row:
                raise SettingError(f"run={run.path}: its samples hold no {v.name!r}, so nothing can be held fixed.")
    draws = []
    for draw in range(config.draws):
        seed = config.seed + draw
        outputs = generate(system, samples, seed, config.batch_size, f"draw {draw + 1}", [redrawn])
        _, records = measure.measure(samples, outputs, None)
        draws.append({name: [float(record[name]) for record in records] for name in own.metrics if name in records[0]})
    lines = [f"{redrawn} of {run.path}: {len(samples)} rows, {config.draws} draws each, everything else held fixed"]
    for name in draws[0]:
        numbers = np.array([draw[name] for draw in draws])
        share = "" if numbers.std() == 0 else f", {100 * between_rows(numbers):.0f} % of the variance between rows"
        lines.append(f"  {name}: mean {numbers.mean():.3f}, best of {config.draws} {numbers.max(0).mean():.3f}{share}")
    return "\n".join(lines)


def between_rows(numbers: Sequence[Sequence[float]] | npt.NDArray[np.float64]) -> float:
    """The share of variance that lies between rows: numbers [draws, rows] -> at most 1.

    The one-way intraclass correlation, ICC(1) of Shrout and Fleiss (1979): an unbiased estimate of both variances,
    so a share that is truly 0 can come out a little below.
    """
    array = np.asarray(numbers, dtype=np.float64)
    within = array.var(axis=0, ddof=1).mean()
    between = array.mean(axis=0).var(ddof=1) - within / len(array)
    return float(between / (between + within))
