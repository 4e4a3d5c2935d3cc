"""A checkpoint that a run has kept, judged as the run itself is in the end: `step=55`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sysdpo.errors import SettingError
from sysdpo.evaluation.measures import Measure
from sysdpo.experiment.build import as_evaluated, build_system, built, prepare_data
from sysdpo.experiment.evaluate import evaluate
from sysdpo.runs.folder import RunFolder, write_json
from sysdpo.training.checkpoints import checkpoint_path, checkpoint_steps, load_checkpoint, load_trainable
from sysdpo.training.objectives import Objective


def evaluate_kept(config: DictConfig) -> str:
    """Judge the weights of a run after one of its updates, on the run's own evaluation rows and by its own judge.

    The samples and figures go to `<run>/steps/step=<n>/`; reports show the figures in the curves over training.

    Args:
        config: `conf/evaluate.yaml`.

    Returns:
        A line for each metric.

    Raises:
        SettingError: there is no such run, no such checkpoint, or nothing that the run would measure.
    """
    if OmegaConf.is_missing(config, "run"):
        raise SettingError("run is not set; give the folder of a run: run=outputs/…/seed=0")
    run = RunFolder(Path(config.run).expanduser())
    if run.config is None:
        raise SettingError(f"run={run.path}: there is no run in this folder.")
    kept = checkpoint_steps(run.path / "checkpoints")
    if OmegaConf.is_missing(config, "step") or config.step not in kept:
        said = "step is not set" if OmegaConf.is_missing(config, "step") else f"step={config.step}: is not kept"
        there = ", ".join(map(str, reversed(kept))) or "none (training.keep_checkpoints=null keeps all)"
        raise SettingError(f"{said}; {run.path} has the checkpoints of these updates: {there}.")
    path = checkpoint_path(run.path / "checkpoints", config.step)
    state, wrong = load_checkpoint(path)
    if state is None:
        raise SettingError(f"{path} {wrong}.")
    own = OmegaConf.create({**run.config, "evaluation_batch_size": config.batch_size})
    if own.evaluation is None:
        raise SettingError(f"run={run.path}: it measures nothing.")
    measure: Measure = built(own, "evaluation", Measure)
    objective: Objective = built(own, "objective", Objective)
    system = build_system(own)
    system.train_only(list(system.components) if own.train is None else list(own.train))
    data = prepare_data(own, system, objective.needs_intermediates)
    load_trainable(system, state["weights"])
    folder = run.step_folder(config.step)
    metrics = evaluate(own, as_evaluated(own, system), data, measure, folder)
    if not metrics:
        raise SettingError(f"run={run.path}: its data have no evaluation rows, or it has no judge.")
    write_json(folder / "metrics.json", metrics)
    lines = [f"{run.path} after {config.step} updates"]
    for name in own.metrics:
        if name in metrics:
            cell = metrics[name]
            error = "" if cell["se"] is None else f" ± {cell['se']:.3g}"
            lines.append(f"  {name}: {cell['value']:.4g}{error} (n = {cell['n']})")
    return "\n".join([*lines, str(folder / "metrics.json")])
