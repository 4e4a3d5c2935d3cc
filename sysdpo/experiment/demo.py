"""An aligned run on a prompt of one's own: the same inputs and streams under the weights before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from sysdpo.components.image.pixels import to_picture
from sysdpo.errors import SettingError, nearest
from sysdpo.experiment.build import build_system
from sysdpo.graph import SystemGraph, Variable
from sysdpo.reporting.pooling import variables
from sysdpo.reporting.sheets import Line, Strip, draw_sheet
from sysdpo.runs.folder import RunFolder
from sysdpo.seeds import stream
from sysdpo.system import CompoundSystem

EXAMPLE = 'ask="Write one sentence about rivers."'
GAP = 2  # pixels between the images of a strip
SIZE = 96  # pixels to which smaller images are enlarged, by a whole factor


def demonstrate(config: DictConfig) -> str:
    """Draw from an aligned run for a prompt, before and after.

    Args:
        config: `conf/generate.yaml`.

    Returns:
        The values of all generated variables side by side, and the file of the pictures if there are some.

    Raises:
        SettingError: there is no such run, it is not finished, it trained nothing, or an input is missing.
    """
    if OmegaConf.is_missing(config, "run"):
        raise SettingError("run is not set; give the folder of a finished run: run=outputs/…/seed=0")
    run = RunFolder(Path(config.run))
    _check_finished(run)
    inputs = _inputs(variables(run.config or {}, "input"), config)
    system, trained = load_run(run, device=config.device)
    rows = [inputs] * config.samples
    system.check_rows(rows)
    seeds = [stream(config.seed, i) for i in range(config.samples)]
    after = system.generate(rows, seeds)
    with system.reference():
        before = system.generate(rows, seeds)
    lines = [f"{', '.join(trained)} of {run.path}, seed {config.seed}"]
    if run.kept_untrained:
        lines.append("No weights beat the untrained ones in validation, so before and after are the same.")
    lines += [_side_by_side(system.graph, *sides) for sides in zip(before, after, strict=True)]
    sheet = [line for sides in zip(before, after, strict=True) if (line := _pictures(system.graph, *sides))]
    if sheet:
        files = draw_sheet(sheet, Path(config.folder or run.path / "demo") / "sheet")
        lines.append(str(files[0]))
    return "\n\n".join(lines)


def load_run(run: RunFolder, device: str = "auto") -> tuple[CompoundSystem, list[str]]:
    """The system of a run with its trained weights, `reference()` being the untrained ones; and what was trained."""
    system = build_system(OmegaConf.create(_on(run.config or {}, device)))
    trained = system.restore(run.path / "adapters")
    if not trained:
        raise SettingError(f"run={run.path}: it trained nothing, so there is no after; name a run that did.")
    return system, trained


def _check_finished(run: RunFolder) -> None:
    if run.config is None:
        raise SettingError(f"run={run.path}: there is no run in this folder; make one first: make reproduce-table2")
    if run.metrics is None:
        raise SettingError(f"run={run.path}: the run is not finished; the command that began it goes on with it.")


def _on(content: Any, device: str) -> Any:
    """The config with every component on this device, wherever it was trained."""
    if isinstance(content, Mapping):
        return {key: device if key == "device" else _on(value, device) for key, value in content.items()}
    return [_on(value, device) for value in content] if isinstance(content, list) else content


def _inputs(names: Sequence[str], config: DictConfig) -> dict[str, str]:
    """The value of every input variable, from `ask` or by name."""
    given = {str(name): str(value) for name, value in (config.inputs or {}).items()}
    if config.ask is not None:
        if len(names) != 1:
            raise SettingError(f"ask: the system has the inputs {', '.join(names)}; write 'inputs={{{names[0]}: …}}'.")
        given.setdefault(names[0], str(config.ask))
    for name in given:
        if name not in names:
            raise SettingError(f"inputs: {nearest(name, names)}")
    if missing := [name for name in names if not given.get(name, "").strip()]:
        example = EXAMPLE if len(names) == 1 else f"'inputs={{{', '.join(f'{name}: …' for name in names)}}}'"
        raise SettingError(f"nothing is asked: the system reads {', '.join(missing)}; write {example}")
    return given


# ---- what is shown -----------------------------------------------------------------------------------------------


def _side_by_side(graph: SystemGraph, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    lines = [f"{v.name}: {before[v.name]}" for v in graph.inputs]
    for v in graph.generated:
        if _is_text(before[v.name]) and _is_text(after[v.name]):
            note = " (intermediate)" if v.role == "intermediate" else ""
            lines += [f"\n{v.name}{note}", f"  before: {_shown(before[v.name])}", f"  after:  {_shown(after[v.name])}"]
    return "\n".join(lines)


def _is_text(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return not any(isinstance(item, torch.Tensor | Image.Image) for item in values)


def _shown(value: Any) -> str:
    texts = [str(item).strip() for item in (value if isinstance(value, list) else [value])]
    lines = ["".join(c if c.isprintable() else "\ufffd" for c in line) for line in "\n".join(texts).splitlines()]
    return "\n          ".join(lines) or "(nothing)"


def _pictures(graph: SystemGraph, before: Mapping[str, Any], after: Mapping[str, Any]) -> Line | None:
    """The first final variable that holds images, as a line of a sheet; None if there is none."""
    for v in graph.finals:
        if not (_is_text(before[v.name]) and _is_text(after[v.name])):
            captions = _captions(graph, v)
            strips = [
                Strip(title, _strip(row[v.name]), row[captions] if captions else [])
                for title, row in (("before", before), ("after", after))
            ]
            return Line(" ".join(str(before[i.name]) for i in graph.inputs), strips)
    return None


def _captions(graph: SystemGraph, final: Variable) -> str | None:
    """The parent in the final variable's plate: one text an image."""
    return next((p for p in final.parent_names if final.plate and graph[p].plate == final.plate), None)


def _strip(value: Any) -> Image.Image | None:
    images: Sequence[Image.Image] = [_picture(item) for item in (value if isinstance(value, list) else [value])]
    if not images:
        return None
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    canvas = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width + GAP
    factor = max(1, SIZE // canvas.height)
    return canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.NEAREST)


def _picture(value: Any) -> Image.Image:
    return value if isinstance(value, Image.Image) else to_picture(value)
