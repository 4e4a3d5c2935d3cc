"""Separate-DPO, the baseline of table 2: each component is aligned alone, by TRL's own DPOTrainer.

Every component is trained as if its text were the system's answer: its prompt is made from its parents, drawn from
the untrained system, and its completions are the data set's chosen and rejected final answers. A component that draws
several variables is trained once, on the prompts of all of them.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig

from sysdpo import processes
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.text.packing import Completion
from sysdpo.errors import SettingError
from sysdpo.progress import bar
from sysdpo.runs.files import append_line, explained, write_jsonl
from sysdpo.runs.stopping import between_updates
from sysdpo.seeds import stream
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.fingerprint import fingerprint
from sysdpo.training.loop import TrainingSettings
from sysdpo.training.stages import Guard, GuardedTrainer, Seal, logged_line, newest_checkpoint
from sysdpo.training.start import check_log_ratios

log = logging.getLogger(__name__)


def train_separately(system: CompoundSystem, pairs: Sequence[Pair], settings: TrainingSettings, folder: Path) -> None:
    """Align every component by itself; `folder/metrics.jsonl` gets TRL's logs, one component after another.

    Beta, batch size and number of updates are those of the joint run, and so is the rate of the component that answers:
    each text is trained as an answer. Training goes on from the newest checkpoint of each component.
    """
    if len(system.graph.finals) != 1:
        raise SettingError("trainer=separate needs a system with one final variable, whose answers it can reuse.")
    if settings.link == "ipo" or settings.label_smoothing:
        raise SettingError(
            f"trainer=separate: TRL's DPOTrainer has no training.link={settings.link} with "
            f"training.label_smoothing={settings.label_smoothing} as defined here; use sigmoid or hinge, without it."
        )
    share = settings.batch_size // processes.count()
    if settings.batch_size % processes.count() or share % min(settings.micro_batch_size, share):
        together = f" times the {processes.count()} processes" if processes.count() > 1 else ""
        raise SettingError(
            f"trainer=separate: training.batch_size={settings.batch_size} must be a multiple of "
            f"training.micro_batch_size={settings.micro_batch_size}{together}."
        )
    for name in system.trainable:
        if system.component(name).domain is not None:
            raise SettingError(
                f"trainer=separate: component {name!r} chooses from a list, so no answer could be its own; leave it "
                "out of train: [...]."
            )
    final = system.graph.finals[0].name
    intermediates = [v.name for v in system.graph.intermediates]
    asked = [pairs[i] for i in processes.share(len(pairs))]
    with_parents = processes.joined(
        system.generate([p.inputs for p in asked], [stream(settings.seed, p.index) for p in asked], only=intermediates)
    )
    own = fingerprint(system, None, pairs, [], settings)
    # each component's lines come back from its checkpoint
    processes.by_first(lambda: write_jsonl(folder / "metrics.jsonl", []))
    for name in system.components:
        component = system.component(name)
        if not isinstance(component, LanguageModel) or not component.is_trainable:
            continue
        rows = [
            (
                _row(component, {alias: values[parent] for alias, parent in variable.parents}, pair, final),
                pair.index + 1,
            )
            for variable in system.graph.generated
            for values, pair in zip(with_parents, pairs, strict=True)
            if name in variable.may_draw(values)
        ]
        if not rows:
            raise SettingError(f"trainer=separate: component {name!r} draws nothing for any of the {len(pairs)} pairs.")
        rate = settings.learning_rates.get(name, settings.learning_rate)  # its text is trained as an answer
        part = {**own, "component": name, "training.learning_rate": str(rate)}
        align_alone(name, component, [r for r, _ in rows], [n for _, n in rows], settings, rate, folder, part)


def _row(component: LanguageModel, parents: dict[str, Any], pair: Pair, final: str) -> dict[str, list[int]]:
    """Token ids, so that TRL scores the tokens that the joint run scores: one BOS, the turn's own end, the same cut."""
    codec = component.codec
    chosen, rejected = (codec.completion_ids(str(v[final])) for v in (pair.chosen, pair.rejected))
    return {
        "prompt_ids": list(codec.prompt_ids(parents)),
        "chosen_ids": list(chosen),
        "rejected_ids": list(rejected),
    }


def align_alone(
    name: str,
    component: LanguageModel,
    rows: list[dict[str, list[int]]],
    numbers: list[int],
    settings: TrainingSettings,
    learning_rate: float,
    folder: Path,
    own: dict[str, str],
) -> None:
    """Train to the last update; `numbers`: of the rows in the data, `own`: what the training is of."""
    if not isinstance(component.model, PeftModel):
        raise SettingError("trainer=separate trains adapters; set model.lora.")
    adapters = set(component.model.peft_config)
    share = settings.batch_size // processes.count()
    micro_batch_size = min(settings.micro_batch_size, share)
    checkpoints = folder / "checkpoints" / name
    newest = processes.by_first(lambda: newest_checkpoint(checkpoints, own, settings.steps))
    for line in newest.history(name) if newest is not None and processes.is_first() else []:
        append_line(folder / "metrics.jsonl", line)
    if newest is not None and newest.step == settings.steps:
        component.restore(str(newest.path))  # TRL would begin another epoch where the steps are no multiple of one
        component.trainable(True)
        return
    if newest is None:
        component.rehearse_saving()
        first = Completion(tuple(rows[0]["prompt_ids"]), tuple(rows[0]["chosen_ids"]))
        with torch.no_grad():
            score = component.score([first])
            with component.reference():
                check_log_ratios(name, score - component.score([first]), score)
    if processes.count() > 1 and settings.steps * settings.batch_size > len(rows) and len(rows) % settings.batch_size:
        log.warning(
            "%s: training.batch_size=%d does not divide %d pairs; TRL fills an epoch's last update from its start, "
            "where one process takes the smaller update that is left",
            *(name, settings.batch_size, len(rows)),
        )
    guard = Guard(name, settings.nonfinite)
    trainer = GuardedTrainer(
        nll_weight=settings.nll_weight,
        model=component.model,
        args=DPOConfig(
            output_dir=str(checkpoints),
            max_steps=settings.steps,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=share // micro_batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            beta=settings.beta,
            loss_type=[settings.link],
            max_length=None,
            seed=settings.seed,
            use_cpu=component.device.type == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            router_aux_loss_coef=0.0,  # a mixture's balancing loss is no part of the joint run's either
            save_strategy="steps",
            save_steps=settings.checkpoint_every,
            # the one before stays until the newest is whole
            save_total_limit=None if settings.keep_checkpoints is None else max(2, settings.keep_checkpoints),
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=component.codec.tokenizer,
        callbacks=[Record(folder / "metrics.jsonl", name), guard],
    )
    trainer.remember(numbers)
    guard.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # the record's bar says it
    with between_updates() as request, explained(checkpoints):
        trainer.add_callback(Seal(own, request))
        trainer.train(resume_from_checkpoint=str(newest.path) if newest is not None else None)
        request.obey()
    for adapter in set(component.model.peft_config) - adapters:  # TRL keeps its reference as a second adapter
        component.model.delete_adapter(adapter)
    component.trainable(True)
    component.model.eval()


class Record(TrainerCallback):
    """TRL's logged steps as lines of `metrics.jsonl`, with the component's name, and as a progress bar."""

    def __init__(self, path: Path, component: str) -> None:
        self.path, self.component = path, component

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = bar(f"train {self.component}", total=state.max_steps, initial=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs and processes.is_first():
            append_line(self.path, logged_line(self.component, state.global_step, logs))
