"""What Separate-DPO goes on from: TRL's own checkpoints, each sealed once it is whole, and the guard of its numbers.

`checkpoints/<component>/checkpoint-<n>/` is TRL's; `stage.json` in it says what it is of, `SHA256SUMS`, written last,
that nothing of it has been cut off or lost since.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from sysdpo import processes
from sysdpo.errors import SettingError
from sysdpo.runs.files import damage, remove, write_json, write_sums
from sysdpo.runs.stopping import Request
from sysdpo.training.fingerprint import differing
from sysdpo.training.loop import NotFinite, stop_or_skip
from sysdpo.training.token_dpo import TokenDPOTrainer

log = logging.getLogger(__name__)

STAGE = "stage.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole one: the update after which it was kept, and what TRL had logged until then."""

    path: Path
    step: int

    def history(self, component: str) -> list[dict[str, Any]]:
        state = json.loads((self.path / "trainer_state.json").read_text(encoding="utf-8"))
        return [logged_line(component, row["step"], row) for row in state["log_history"] if "loss" in row]


def logged_line(component: str, step: int, logs: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `metrics.jsonl`, of what TRL logs."""
    numbers = {k: float(v) for k, v in logs.items() if k != "step" and isinstance(v, int | float | str)}
    return {"component": component, "step": step, **numbers}


def newest_checkpoint(folder: Path, fingerprint: Mapping[str, str], steps: int) -> Checkpoint | None:
    """The newest whole checkpoint of a component; what is not whole is said in one line and removed.

    Raises:
        SettingError: the checkpoints are of another training.
    """
    numbers = [re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")]
    for step in sorted((int(found[1]) for found in numbers if found), reverse=True):
        path = folder / f"checkpoint-{step}"
        wrong = damage(path)
        if wrong is None:
            stage = json.loads((path / STAGE).read_text(encoding="utf-8"))
            if (reason := differing(stage["fingerprint"], fingerprint)) is not None:
                raise SettingError(
                    f"{path}: {reason}; remove or rename the folder {folder.parent}, or write elsewhere (outputs=…), "
                    "to train from the start."
                )
            if stage["step"] == step <= steps:
                return Checkpoint(path, step)
            wrong = f"is of update {stage['step']}, beyond training.steps={steps}"
        log.warning("%s: %s; passed over for the checkpoint before it", path, wrong)
        remove(path)
    return None


class Seal(TrainerCallback):
    """Marks each of TRL's checkpoints as whole, and stops between two updates when a signal has come."""

    def __init__(self, fingerprint: Mapping[str, str], request: Request) -> None:
        self.fingerprint, self.request = dict(fingerprint), request

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.request.number = processes.most(self.request.number or 0) or None  # all stop at the same update
        if self.request.number is not None:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        processes.wait()  # each writes its state of random numbers
        if processes.is_first():
            write_json(folder / STAGE, {"step": state.global_step, "fingerprint": self.fingerprint})
            write_sums(folder)


class GuardedTrainer(TokenDPOTrainer):
    """TRL's trainer, which remembers the rows of an update and which of them had a loss that is not finite.

    `numbers`: tokens of prompt and chosen answer -> the row's number in the data, from 1.
    """

    numbers: dict[tuple[int, ...], int]
    seen: list[int]
    wrong: list[int]

    def remember(self, rows: list[int]) -> None:
        """`rows`: the number of each row of the training set."""
        data: Any = self.train_dataset
        columns = zip(data["prompt_ids"], data["chosen_ids"], rows, strict=True)
        self.numbers = {(*prompt, *chosen): number for prompt, chosen, number in columns}
        self.seen, self.wrong = [], []

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        kept = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
        keys = [tuple(i for i, mask in zip(ids, masks, strict=True) if mask) for ids, masks in kept]
        chosen = [self.numbers[key] for key in keys[: len(keys) // 2] if key in self.numbers]
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.seen += chosen
        if not math.isfinite(float(loss)):
            self.wrong += chosen
        return loss


class Guard(TrainerCallback):
    """Stops at, or leaves out, an update whose loss or gradient is not finite."""

    def __init__(self, component: str, nonfinite: str) -> None:
        self.component, self.nonfinite = component, nonfinite
        self.trainer: GuardedTrainer | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        assert self.trainer is not None
        seen, wrong = processes.joined(self.trainer.seen), processes.joined(self.trainer.wrong)
        self.trainer.seen, self.trainer.wrong = [], []
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients) and not wrong:
            return
        stop_or_skip(
            NotFinite(state.global_step + 1, "loss" if wrong else "gradient", [self.component], wrong or seen),
            self.nonfinite,
        )
        for parameter in model.parameters():
            parameter.grad = None  # the optimizer leaves out what has none
