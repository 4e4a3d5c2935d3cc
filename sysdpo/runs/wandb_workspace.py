"""A saved W&B workspace for the runs of a project: results by study, training curves, each component's share."""

from collections.abc import Mapping, Sequence
from typing import Any

from sysdpo.errors import SettingError, one_line

TRAINING = ("loss", "rewards/margins", "validation/rewards/margins", "rewards/accuracies", "grad_norm")
SWEPT = ("beta", "objective.strategy.k", "objective.strategy.draw.diversity_penalty", "seed")
"""Settings that the parallel coordinates show; a run that lacks one is drawn without it."""


def make_workspace(entity: str, project: str, name: str, metrics: Mapping[str, str], components: Sequence[str]) -> Any:
    """The workspace as an object that `save()` uploads.

    Args:
        entity: the account or team; `project`, `name`: where it is shown, and under which name.
        metrics: of the experiment, name -> heading.
        components: of the system.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise SettingError("wandb-workspaces is not installed; pip install 'sysdpo[dashboard]'.") from error

    def curves(names: Sequence[str]) -> list[Any]:
        return [wr.LinePlot(title=key, x="step", y=[key]) for key in names]

    coordinates = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key)) for key in SWEPT]
    outcomes = [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(f"{m}.value")) for m in metrics]
    results: list[Any] = [wr.BarPlot(title=text, metrics=[f"{m}.value"]) for m, text in metrics.items()]
    results += [wr.ParallelCoordinatesPlot(columns=[*coordinates, *outcomes]), wr.RunComparer(diff_only="split")]
    parts = [f"components/{name}/margin" for name in components]
    sections = [
        ws.Section(name="Results", panels=results, is_open=True),
        ws.Section(name="Evaluation over training", panels=curves([f"evaluation/{m}" for m in metrics])),
        ws.Section(name="Training", panels=curves(TRAINING), is_open=True),
        ws.Section(name="Components", panels=curves(parts)),
    ]
    runset = ws.RunsetSettings(groupby=[ws.Metric("Group")])
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, runset_settings=runset)


def save_workspace(
    entity: str | None, project: str, name: str, metrics: Mapping[str, str], components: Sequence[str]
) -> str:
    """Upload the workspace; returns its address.

    Raises:
        SettingError: nobody is logged in to W&B, or W&B refuses.
    """
    import wandb
    from wandb.errors import CommError, UsageError

    try:
        owner = entity or wandb.Api(timeout=30).default_entity
    except (UsageError, CommError) as error:
        raise SettingError(
            f"W&B: {one_line(error, 300)} Log in with `wandb login`, or set WANDB_API_KEY; "
            "`make dashboard` needs no account."
        ) from error
    if not owner:
        raise SettingError(
            "WANDB_ENTITY is not set and the account has no default entity; set it to an account or team."
        )
    try:
        return str(make_workspace(owner, project, name, metrics, components).save().url)
    except (UsageError, CommError, ValueError) as error:
        raise SettingError(
            f"logger.project={project} of {owner}: W&B did not take the workspace ({one_line(error, 300)}); "
            "upload runs first with `make wandb-sync`."
        ) from error
