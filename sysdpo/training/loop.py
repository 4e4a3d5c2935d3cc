"""The training loop: one system, one optimizer with a parameter group per component, one preference loss (eq. 2)."""

import json
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sysdpo import processes
from sysdpo.errors import SettingError, nearest
from sysdpo.limits import check_fields
from sysdpo.losses import Link
from sysdpo.progress import bar
from sysdpo.runs.files import append_line, write_jsonl
from sysdpo.runs.stopping import Terminated, between_updates
from sysdpo.seeds import stream
from sysdpo.sharding import full
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.checkpoints import (
    load_optimizer,
    load_trainable,
    optimizer_state,
    read_checkpoint,
    trainable_state,
    write_checkpoint,
)
from sysdpo.training.engine import MicroBatch, gradients_kept, joined_gradients
from sysdpo.training.fingerprint import differing, fingerprint
from sysdpo.training.objectives import Comparison, Objective
from sysdpo.training.on_policy import OnPolicy, OnPolicySettings, Redraw
from sysdpo.training.start import check_margin, check_saving

log = logging.getLogger(__name__)

NonFinite = Literal["stop", "skip"]
"""What follows on a loss or gradient that is NaN or infinite."""


@dataclass(frozen=True)
class TrainingSettings(OnPolicySettings):
    """Every key is commented in `conf/training/default.yaml`."""

    steps: int = 24
    batch_size: int = 8
    micro_batch_size: int = 8
    draw_batch_size: int | None = None
    sort_by_length: bool = True
    learning_rate: float = 1e-4
    beta: float = 0.1
    intermediate_learning_rate: float | None = None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    link: Link = "sigmoid"
    label_smoothing: float = 0.0
    nll_weight: float = 0.0
    weight_decay: float = 0.0
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    checkpoint_every: int = 10
    keep_checkpoints: int | None = 2
    nonfinite: NonFinite = "stop"
    validate_every: int = 0
    patience: int | None = None
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "training.")
        if self.label_smoothing and self.link != "sigmoid":
            raise SettingError(
                f"training.label_smoothing={self.label_smoothing} with training.link={self.link}: only the "
                "sigmoid link has it; set training.label_smoothing=0."
            )
        if self.patience is not None and not self.validate_every:
            raise SettingError(f"training.patience={self.patience} needs validations; set training.validate_every.")
        self.check_on_policy(self.steps)


def check_training(system: CompoundSystem, settings: TrainingSettings) -> None:
    """Refuse a system that could not be trained, before its data are made."""
    for name in settings.learning_rates:
        if name not in system.components:
            raise SettingError(f"training.learning_rates: {nearest(name, system.components)}")
    if not system.trainable:
        raise SettingError("train: no component has trainable weights; name at least one that is no tool.")


def check_pairs(train: Sequence[Pair], validation: Sequence[Pair], settings: TrainingSettings) -> None:
    """Refuse data that could not be trained on, before anything is written."""
    if not train and validation:
        raise SettingError(
            f"dataset.validation leaves nothing of {len(validation)} pairs to train on; lower it, or make more prompts "
            "(dataset.prompts, dataset.prompts_per_attribute)."
        )
    if not train:
        raise SettingError("the data set is empty: there is no pair to train on.")
    if settings.validate_every and not validation:
        raise SettingError(
            f"training.validate_every={settings.validate_every} but there is no validation pair; raise "
            "dataset.validation, or set training.validate_every=0."
        )


def rate_of(settings: TrainingSettings, system: CompoundSystem, name: str) -> float:
    """A component's learning rate: its own, that of components that draw no final variable, or the general one."""
    if name in settings.learning_rates:
        return settings.learning_rates[name]
    draws_final = any(name in variable.components for variable in system.graph.finals)
    own = None if draws_final else settings.intermediate_learning_rate
    return settings.learning_rate if own is None else own


class NotFinite(Exception):
    """A loss or gradient that is NaN or infinite: step, components, and the rows by their numbers in the data."""

    def __init__(self, step: int, what: str, components: Sequence[str], rows: Sequence[int]) -> None:
        numbers = [str(row) for row in sorted(set(rows))]
        shown = ", ".join(numbers[:10]) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
        named = f"component {', '.join(components)}, " if components else ""
        super().__init__(f"step {step}: the {what} is not finite ({named}row {shown} of the data)")


Fault = tuple[list[str], list[int]]
"""The components and the rows, by their numbers in the data, of losses that are not finite."""


def fault_of(compared: Comparison, loss: Tensor, pairs: Sequence[Pair]) -> Fault | None:
    """Which rows' loss [B] is not finite, and which components' share of it is not; None where all are."""
    wrong = ~torch.isfinite(loss)
    if not wrong.any():
        return None
    components = [name for name, value in compared.terms.items() if not torch.isfinite(value[wrong]).all()]
    return components, [pair.index + 1 for pair, bad in zip(pairs, wrong.tolist(), strict=True) if bad]


def check_losses(fault: Fault | None, step: int) -> None:
    """Raises:
    NotFinite: a loss of this process or of another is not finite.
    """
    if faults := [found for found in processes.each(fault) if found is not None]:
        components = dict.fromkeys(name for names, _ in faults for name in names)
        raise NotFinite(step, "loss", list(components), [row for _, rows in faults for row in rows])


def stop_or_skip(error: NotFinite, nonfinite: str) -> None:
    """Say that an update is left out; with `stop`, a `SettingError` instead."""
    if nonfinite == "stop":
        raise SettingError(
            f"{error}; lower training.learning_rate, use dtype=float32, look at these rows, or set "
            "training.nonfinite=skip to leave such updates out."
        ) from None
    log.warning("%s: this update is left out (training.nonfinite=skip)", error)


@dataclass
class Best:
    """The validated weights with the highest mean margin, and how many validations ago they were seen.

    Before training the margin is exactly 0, so weights that never beat it are never chosen.
    """

    margin: float = 0.0
    step: int = 0
    age: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """Trains the components of a system that are trainable (`CompoundSystem.train_only`).

    Args:
        system: the policy; its reference is what it was before training.
        objective: how two outcomes are compared: `Direct()` (eq. 4) or `Sampling(k=2)` (eq. 9).
        train: the pairs.
        validation: pairs to choose weights by, where `validate_every` is set.
        settings: of the loop; single ones may be given by name instead: `steps=24, learning_rate=1e-4`.
        folder: gets `metrics.jsonl` and `checkpoints/`, from which the same call goes on.
        log: is given every record of `metrics.jsonl`.
        evaluate: measures the current system, every `evaluate_every` updates.
        measured_by: what `evaluate` measures by; lines of the history that were measured otherwise are left out.
        redraw: makes pairs of the current system, every `redraw_every` updates.

    A folder that holds the checkpoints of another system, data set or setting is refused: see `fingerprint`.
    """

    def __init__(
        self,
        system: CompoundSystem,
        objective: Objective,
        train: Sequence[Pair],
        validation: Sequence[Pair] = (),
        settings: TrainingSettings | None = None,
        folder: str | Path = "run",
        log: Callable[[Mapping[str, float]], object] | None = None,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        measured_by: str = "",
        redraw: Redraw | None = None,
        **changes: Any,
    ) -> None:
        if unknown := next((name for name in changes if name not in TrainingSettings.__dataclass_fields__), None):
            raise SettingError(f"Trainer: {nearest(unknown, TrainingSettings.__dataclass_fields__)}")
        settings = replace(settings or TrainingSettings(), **changes)
        folder = Path(folder)
        objective.check(system)
        check_training(system, settings)
        check_pairs(train, validation, settings)
        system.share_out()
        self.system, self.objective, self.settings, self.folder = system, objective, settings, folder
        self.train_pairs, self.validation_pairs = train, validation
        self.log, self.evaluate, self.measured_by = log, evaluate, measured_by
        self.on_policy = OnPolicy(system, settings, train, settings.batch_size, settings.seed, redraw)
        self.step, self.skipped = 0, 0
        self.history: list[dict[str, Any]] = []
        self.fingerprint = fingerprint(system, objective, train, validation, settings)
        self.best = Best(state=trainable_state(system) if settings.validate_every else {})
        self.micro_batch = MicroBatch(
            system, objective, settings.beta, settings.link, settings.label_smoothing, settings.nll_weight
        )
        self.joined = joined_gradients(self.micro_batch)
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=settings.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / max(1, settings.warmup_steps))
        )

    def _groups(self) -> list[dict[str, Any]]:
        groups = []
        for name, component in self.system.components.items():
            parameters = [p for p in component.parameters() if p.requires_grad]
            if parameters:
                groups.append({"params": parameters, "lr": rate_of(self.settings, self.system, name), "name": name})
        return groups

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> Best:
        """Train to the last step, or until validation has not improved for `patience` times.

        Returns:
            The best validated weights, already loaded; without validation, the last ones.
        """
        self.resume()
        if self.step == 0:
            check_saving(self.system)
        if self.step == 0 and self.settings.evaluate_every:
            self._record(self._evaluate())
        with bar("train", total=self.settings.steps, initial=self.step) as progress, between_updates() as request:
            while self.step < self.settings.steps and not self._exhausted():
                metrics = self._update()
                self.step += 1
                if self._due(self.settings.validate_every):
                    metrics |= self._validate()
                if self._due(self.settings.evaluate_every):
                    metrics |= self._evaluate()
                self._record(metrics)
                stop = processes.most(request.number or 0)  # all stop at the same update
                if self._due(self.settings.checkpoint_every) or self._exhausted() or stop:
                    self.checkpoint()
                if stop:
                    raise Terminated(stop)
                if "loss" in metrics:
                    progress.set_postfix_str(f"loss {metrics['loss']:.3f} margin {metrics['rewards/margins']:.2f}")
                progress.update()
        self.on_policy.close()
        if not self.settings.validate_every:
            return Best(step=self.step)
        if self.best.step == 0:
            log.warning(
                "no weights beat the untrained ones in validation, which are kept; training.validate_every=0 "
                "keeps the last ones"
            )
        load_trainable(self.system, self.best.state)
        return self.best

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.settings.steps)

    def _exhausted(self) -> bool:
        return self.settings.patience is not None and self.best.age >= self.settings.patience

    def _update(self) -> dict[str, float]:
        started = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        redrawn = self.on_policy.begin(self.step)
        pairs = self.on_policy.batch(self.step)
        try:
            metrics = self._means(pairs, self.step)
            metrics |= self._diagnostics()
            metrics |= self._gradient_norms(pairs)
        except NotFinite as error:
            metrics = self._skip(error)
        else:
            self.optimizer.step()
            self.on_policy.updated()
        metrics |= redrawn
        for group in self.optimizer.param_groups:
            metrics[f"learning_rate/{group['name']}"] = group["lr"]
        self.scheduler.step()
        metrics["seconds"] = time.perf_counter() - started
        return metrics

    def _skip(self, error: NotFinite) -> dict[str, float]:
        """An update without effect, where the settings allow it."""
        stop_or_skip(error, self.settings.nonfinite)
        self._diagnostics()  # what the components observed belongs to this update
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        return {"skipped": float(self.skipped)}

    def _means(self, pairs: Sequence[Pair], step: int) -> dict[str, float]:
        """Means over the pairs, sums of counts; with gradients enabled, those of the mean loss are added up.

        Each process takes its share of the pairs, in micro batches.
        """
        learning = torch.is_grad_enabled()
        module = self.joined if learning else self.micro_batch
        sums: dict[str, float] = {}
        fault: Fault | None = None
        if self.settings.sort_by_length and len(pairs) > self.settings.micro_batch_size:
            pairs = sorted(pairs, key=_characters)  # a micro batch is padded to its longest pair
        ahead = self._draw_ahead(pairs, step)
        has_reference = getattr(self.objective, "with_reference", True)
        parts = processes.rounds(len(pairs), self.settings.micro_batch_size)
        for number, indices in enumerate(parts, 1):
            part, seeds = [pairs[i] for i in indices], [self._seed(pairs[i], step) for i in indices]
            drawn = None if ahead is None else [ahead[i] for i in indices]
            with gradients_kept(module, last=number == len(parts)):
                loss, compared = module(part, seeds, drawn)
                if learning:
                    if self.step == 0 and part and has_reference:  # no weight has moved
                        check_margin(self.system, compared)
                    fault = fault or fault_of(compared, loss.detach(), part)
                    # summed here and divided by all pairs: accumulation gives the gradient of one large batch; times
                    # the processes, whose mean is taken where gradients are joined
                    (loss.sum() / len(pairs) * processes.count()).backward()
            for name, value in measure(compared, loss.detach(), self.settings.beta).items():
                sums[name] = sums.get(name, 0.0) + value
        if learning:
            check_losses(fault, step + 1)
            self._leave_out_unused()
        sums = processes.summed(sums)
        return {name: total if name.startswith("count/") else total / len(pairs) for name, total in sums.items()}

    def _draw_ahead(self, pairs: Sequence[Pair], step: int) -> dict[int, list[Any]] | None:
        """What this process's share of the pairs will need, by the pair's place; None: it is drawn in time."""
        if (at_once := self.settings.draw_batch_size) is None:
            return None
        ahead: dict[int, list[Any]] = {}
        for indices in processes.rounds(len(pairs), at_once):
            part, seeds = [pairs[i] for i in indices], [self._seed(pairs[i], step) for i in indices]
            drawn = self.objective.draw_ahead(self.system, part, seeds, at_once)
            if drawn is None:
                return None
            ahead.update(zip(indices, drawn, strict=True))
        return ahead

    def _leave_out_unused(self) -> None:
        """A component that no row went through has no gradient, as in one process: wrappers leave zeros."""
        computed = set[str]().union(*processes.each(self.system.computed))
        self.system.computed.clear()
        if processes.count() == 1:
            return
        for group in self.optimizer.param_groups:
            if group["name"] not in computed:
                for parameter in group["params"]:
                    parameter.grad = None

    def _diagnostics(self) -> dict[str, float]:
        observed = {
            f"components/{name}/{key}": list(values)
            for name in self.system.components
            for key, values in self.system.component(name).diagnostics().items()
        }
        parts = processes.each(observed)
        found = {name: [v for part in parts for v in part.get(name, ())] for part in parts for name in part}
        return {name: sum(values) / len(values) for name, values in found.items()}

    def _gradient_norms(self, pairs: Sequence[Pair]) -> dict[str, float]:
        norms = {
            group["name"]: float(full(torch.nn.utils.get_total_norm(_gradients(group["params"]))))
            for group in self.optimizer.param_groups
        }
        if wrong := [name for name, norm in norms.items() if not math.isfinite(norm)]:
            raise NotFinite(self.step + 1, "gradient", wrong, [pair.index + 1 for pair in pairs])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        total = float(full(torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)))
        return {"grad_norm": total, **{f"grad_norm/{name}": norm for name, norm in norms.items()}}

    def _seed(self, pair: Pair, step: int) -> int:
        return stream(self.settings.seed, step, pair.index)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        with self.system.first_reference():  # margins of all validations have one measure
            measured = self._means(self.validation_pairs, 0)
        metrics = {f"validation/{k}": v for k, v in measured.items() if not k.startswith("count/")}
        metrics |= {f"validation/{k}": v for k, v in self._diagnostics().items()}
        margin = metrics["validation/rewards/margins"]
        if margin > self.best.margin:
            self.best = Best(margin, self.step, 0, trainable_state(self.system))
        else:
            self.best.age += 1
        return metrics

    def _evaluate(self) -> dict[str, float]:
        """The task's own figures for the current weights, a point of the curve over training."""
        return {f"evaluation/{k}": v for k, v in self.evaluate().items()} if self.evaluate is not None else {}

    # ---- records -------------------------------------------------------------------------------------------------

    def _record(self, metrics: Mapping[str, float]) -> None:
        row = {"step": self.step, **metrics}
        if processes.is_first():
            append_line(self.folder / "metrics.jsonl", row)
        self.history.append(row)
        if self.log is not None:
            self.log(row)

    def checkpoint(self) -> None:
        """Keep all that a run goes on from, the lines of `metrics.jsonl` too."""
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "fingerprint": self.fingerprint,
            "measured_by": self.measured_by,
            "weights": trainable_state(self.system),
            "optimizer": optimizer_state(self.optimizer),
            "scheduler": self.scheduler.state_dict(),
            "best": vars(self.best),
            "on_policy": self.on_policy.state(),
            "history": _packed(self.history),
        }
        best = self.best.step if self.settings.validate_every else None
        place, keep = self.folder / "checkpoints", self.settings.keep_checkpoints
        processes.by_first(lambda: write_checkpoint(place, state, keep, best))

    def resume(self) -> None:
        """Go back to the newest checkpoint of the folder that is whole, if it has one.

        Raises:
            SettingError: its checkpoints are of another training.
        """
        saved = read_checkpoint(self.folder / "checkpoints", self._refuse)
        lines = self.folder / "metrics.jsonl"
        if saved is None:
            self.history = []
            processes.by_first(lambda: write_jsonl(lines, []))
            return
        load_trainable(self.system, saved["weights"])
        load_optimizer(self.optimizer, saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.step, self.skipped, self.best = saved["step"], saved["skipped"], Best(**saved["best"])
        self.on_policy.restore(saved.get("on_policy"))
        self.history = _unpacked(saved["history"])
        if saved.get("measured_by", self.measured_by) != self.measured_by:
            self.history = without_evaluation(self.history)
        # as it was at the checkpoint: what was logged after it is about to be repeated, what was lost is back
        processes.by_first(lambda: write_jsonl(lines, self.history))

    def _refuse(self, saved: Mapping[str, Any]) -> str | None:
        """Why a whole checkpoint is none to go on from."""
        if (reason := differing(saved.get("fingerprint"), self.fingerprint)) is not None:
            return reason
        if saved["step"] > self.settings.steps:
            return f"is of update {saved['step']}, beyond training.steps={self.settings.steps}"
        return None


def without_evaluation(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines without the points of the curve, which another judge measured; that is said."""
    kept = [{k: v for k, v in line.items() if not k.startswith("evaluation/")} for line in history]
    if any(len(line) < len(before) for line, before in zip(kept, history, strict=True)):
        log.warning("the curve over training is left out: it was measured under another evaluation")
    return [line for line in kept if set(line) != {"step"}]


def _packed(rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Lines as bytes in a tensor, which a reader that trusts no pickle reads."""
    return torch.from_numpy(np.frombuffer(zlib.compress(json.dumps(rows).encode()), np.uint8).copy())


def _unpacked(packed: Tensor) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(zlib.decompress(packed.numpy().tobytes()))
    return rows


def measure(compared: Comparison, loss: Tensor, beta: float) -> dict[str, float]:
    """Sums over the B pairs, under TRL's names; `components/*` is each component's share of the margin, in nats.

    `sampling/effective_samples` (of K, mean of both sides) and `sampling/total_variation` (between the two sides'
    weights) say how much of a gradient the components before the last have: `losses.posterior_agreement`;
    `sampling/distinct_bigrams` how much the K samples' texts differ: `sampling.diversity`.
    """
    sums = {
        "loss": loss.sum(),
        "rewards/chosen": beta * compared.chosen.sum(),
        "rewards/rejected": beta * compared.rejected.sum(),
        "rewards/margins": beta * compared.margin.detach().sum(),
        "rewards/accuracies": (compared.margin.detach() > 0).float().sum(),
    }
    sums |= {f"logps/{side}": value.sum() for side, value in compared.logps.items()}
    sums |= {f"components/{name}/margin": value.sum() for name, value in compared.terms.items()}
    sums |= {f"components/{name}/{side}": value.sum() for (name, side), value in compared.sides.items()}
    sums |= {f"sampling/{name}": value.sum() for name, value in compared.sampling.items()}
    metrics = {name: float(value) for name, value in sums.items()}
    return metrics | {f"count/{name}": value for name, value in compared.counts.items()}


def _characters(pair: Pair) -> int:
    """Of all texts of a pair."""
    values = [v for part in (pair.inputs, pair.chosen, pair.rejected) for v in part.values()]
    each = [one for v in values for one in (v if isinstance(v, list | tuple) else [v])]
    return sum(len(str(one)) for one in each if isinstance(one, str | Mapping))


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
