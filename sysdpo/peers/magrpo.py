"""Multi-agent GRPO (MAGRPO; Liu et al., 2025) on a graph: fresh answers every update, one reward for all components.

CoMLRL's trainer lets all agents answer one item at the same time; here a component reads what the one before it wrote,
so its loss is restated (`sysdpo.losses.group_relative_loss`) on the joint likelihood of the graph.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from sysdpo.data.redraw import draw_outputs
from sysdpo.errors import SettingError
from sysdpo.losses import group_advantages, group_relative_loss
from sysdpo.peers.task import Task
from sysdpo.progress import progress
from sysdpo.runs.files import append_line, write_jsonl
from sysdpo.seeds import stream
from sysdpo.training.loop import rate_of
from sysdpo.training.on_policy import taken


@dataclass(frozen=True)
class GroupRelative:
    """Updates, learning rates, clipping and prompts at a time are the joint run's; an interrupted run begins anew.

    Args:
        prompts: of an update.
        samples: answers drawn for each prompt, the group that they are compared in.
    """

    prompts: int = 15
    samples: int = 4
    learns_from_pairs: ClassVar[bool] = False

    def train(self, task: Task) -> dict[str, float]:
        if self.prompts < 1 or self.samples < 2:
            raise SettingError(
                f"trainer.prompts={self.prompts}, trainer.samples={self.samples}: at least one prompt, and two samples."
            )
        settings = task.settings
        models = task.language_models("magrpo")
        groups = [
            {"params": [p for p in m.parameters() if p.requires_grad], "lr": rate_of(settings, task.system, name)}
            for name, m in models.items()
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / max(1, settings.warmup_steps))
        )
        write_jsonl(task.folder / "metrics.jsonl", [])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        everyone = task.prompts()
        total = 0
        for step in progress(range(settings.steps), "train", total=settings.steps):
            began = time.perf_counter()
            pairs = taken(everyone, settings.seed, step * self.prompts, (step + 1) * self.prompts)
            drawn = draw_outputs(
                task.system, pairs, self.samples, stream(settings.seed, step), task.batch_size, quiet=True
            )
            scores, calls = task.rank(pairs, drawn)
            total += calls
            optimizer.zero_grad(set_to_none=True)
            rewards = torch.tensor(scores)
            loss = 0.0
            for start in range(0, len(drawn), settings.micro_batch_size):
                some = slice(start, start + settings.micro_batch_size)
                part = self._loss(task, drawn[some], rewards[some]).sum() / len(drawn)
                part.backward()
                loss += part.item()
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
            optimizer.step()
            warmup.step()
            line = {"step": step + 1, "loss": loss, "reward": float(rewards.mean()), "grad_norm": norm}
            append_line(task.folder / "metrics.jsonl", {**line, "seconds": time.perf_counter() - began})
        return {"answers": float(settings.steps * self.prompts * self.samples), "judge_calls": float(total)}

    def _loss(self, task: Task, drawn: Sequence[Sequence[dict[str, Any]]], rewards: torch.Tensor) -> torch.Tensor:
        """Of each prompt: [P], from the joint log-probabilities of its answers."""
        log_probs = task.system.log_prob([row for own in drawn for row in own])
        joint = torch.stack(list(log_probs.values())).sum(0).view(len(drawn), self.samples)
        return group_relative_loss(joint, group_advantages(rewards))
