"""Supervised fine-tuning of every component on the chosen outcome's variables, by TRL's SFTTrainer.

The baseline that the paper's workshop version asks for: what does the rejected side add?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from sysdpo.components.text.language_model import LanguageModel
from sysdpo.errors import SettingError
from sysdpo.peers.task import Task
from sysdpo.runs.files import write_jsonl
from sysdpo.system import CompoundSystem
from sysdpo.training.loop import TrainingSettings, rate_of
from sysdpo.training.separate import Record

IGNORED = -100
"""The label of a token that is not learnt."""


@dataclass(frozen=True)
class ChosenSFT:
    """Each component by itself, with the learning rate, batch size and updates of the joint run.

    An interrupted run begins anew.
    """

    learns_from_pairs: ClassVar[bool] = True

    def train(self, task: Task) -> dict[str, float]:
        rows = [pair.row("chosen") for pair in task.pairs]
        fine_tune(task, rows)
        return {}


def fine_tune(task: Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """Train every component on what it draws in these rows, which hold a value for every variable."""
    write_jsonl(task.folder / "metrics.jsonl", [])
    for name, component in task.language_models("sft").items():
        own = completions(task.system, name, component, rows)
        if not own:
            raise SettingError(f"trainer=sft: component {name!r} draws nothing in any of the {len(rows)} rows.")
        _fine_tune_one(name, component, own, task.settings, rate_of(task.settings, task.system, name), task.folder)


def completions(
    system: CompoundSystem, name: str, component: LanguageModel, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, list[int]]]:
    """What a component is asked and what it draws in the rows, as token ids that TRL takes as they are."""
    found = []
    for variable in system.graph.generated:
        for row in rows:
            if name not in variable.may_draw(row) or row.get(variable.name) is None:
                continue
            prompt = component.codec.prompt_ids({alias: row[parent] for alias, parent in variable.parents})
            answer = component.codec.completion_ids(str(row[variable.name]))
            found.append({"input_ids": [*prompt, *answer], "labels": [*[IGNORED] * len(prompt), *answer]})
    return found


def _fine_tune_one(
    name: str,
    component: LanguageModel,
    rows: list[dict[str, list[int]]],
    settings: TrainingSettings,
    learning_rate: float,
    folder: Path,
) -> None:
    if not isinstance(component.model, PeftModel):
        raise SettingError("trainer=sft trains adapters; set model.lora.")
    micro_batch_size = min(settings.micro_batch_size, settings.batch_size)
    trainer = SFTTrainer(
        model=component.model,
        args=SFTConfig(
            output_dir=str(folder / "checkpoints" / name),
            max_steps=settings.steps,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=max(1, settings.batch_size // micro_batch_size),
            learning_rate=learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            seed=settings.seed,
            use_cpu=component.device.type == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=component.codec.tokenizer,
        callbacks=[Record(folder / "metrics.jsonl", name)],
    )
    trainer.remove_callback(PrinterCallback)  # the record's bar says it
    trainer.train()
    component.trainable(True)
    component.model.eval()
