"""A system of one component is plain DPO: loss, rewards and gradients against TRL's own trainer on the same batch."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from sysdpo.components.text.language_model import LanguageModel
from sysdpo.errors import SettingError
from sysdpo.graph import SystemGraph
from sysdpo.losses import preference_loss
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import Sampler
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.loop import TrainingSettings, measure
from sysdpo.training.objectives import Direct, Sampling
from sysdpo.training.separate import Record, train_separately
from tests.systems import make_pairs_for, make_tiny, make_two_llm

BETA = 0.3
ROWS = [
    ("short", "good", "bad answer"),
    ("a rather longer question", "yes", "no"),
    ("short", "another good one", "x"),
    ("é?", "ü", "a long wrong answer"),
]
METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


def one_component(component: LanguageModel) -> tuple[CompoundSystem, list[Pair]]:
    graph = SystemGraph({"x": {"role": "input"}, "y": {"role": "final", "component": "m", "parents": ["x"]}})
    pairs = [Pair(i, {"x": x}, {"y": chosen}, {"y": rejected}) for i, (x, chosen, rejected) in enumerate(ROWS)]
    return CompoundSystem(graph, {"m": component}), pairs


def trl_trainer(component: LanguageModel, folder: Path, **changes: Any) -> DPOTrainer:
    codec = component.codec
    rows = [
        {"prompt": codec.tokenizer.decode(list(codec.prompt_ids({"x": x}))), "chosen": chosen, "rejected": rejected}
        for x, chosen, rejected in ROWS
    ]
    arguments = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(ROWS),
        beta=BETA,
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        **changes,
    )
    return DPOTrainer(
        model=component.model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=codec.tokenizer
    )


def policy_gradients(component: LanguageModel) -> dict[str, Tensor]:
    named = component.model.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None and ".default." in n}


@pytest.mark.parametrize(
    "link",
    ["sigmoid", "hinge"],  # TRL's ipo divides by lengths, and its sigmoid loss leaves label_smoothing out
)
@pytest.mark.parametrize("objective", [Direct(), Sampling(Sampler(2, MonteCarlo()))], ids=["direct", "sampling"])
def test_loss_rewards_and_gradients(tmp_path: Path, objective: Any, link: Any) -> None:
    """Without intermediates the two objectives are one; TRL's trainer is asked with the very same weights."""
    component = make_tiny(max_new_tokens=64)
    trainer = trl_trainer(component, tmp_path, loss_type=[link])  # its reference is taken now
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in component.model.named_parameters():
            if ".default." in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))])
    component.model.zero_grad()
    trl_loss = trainer.compute_loss(trainer.model, batch)
    trl_loss.backward()
    expected = policy_gradients(component)
    logged = {name: values[-1] for name, values in (trainer._metrics["train"] or trainer._metrics["eval"]).items()}

    system, pairs = one_component(component)
    component.model.zero_grad()
    compared = objective.compare(system, pairs, range(len(pairs)))
    losses = preference_loss(compared.margin, BETA, link)
    losses.mean().backward()
    assert losses.mean().item() == pytest.approx(trl_loss.item(), abs=1e-5)
    ours = measure(compared, losses.detach(), BETA)
    for name in METRICS:
        assert ours[name] / len(ROWS) == pytest.approx(logged[name], rel=1e-5, abs=1e-5), name
    assert abs(logged["rewards/margins"]) > 1e-2
    actual = policy_gradients(component)
    assert actual.keys() == expected.keys()
    assert len(actual) > 10
    for name, gradient in actual.items():
        assert torch.allclose(gradient, expected[name], atol=1e-5, rtol=1e-4), name


def test_separate_dpo_leaves_the_component_as_it_was_but_trained(tmp_path: Path) -> None:
    """TRL may add adapters of its own to a model; none stays, and the reference is still the untrained model."""
    system = make_two_llm()
    pairs = make_pairs_for(system, 4)
    rows = [pair.row("chosen") for pair in pairs]
    untrained = {name: value.detach() for name, value in system.log_prob(rows).items()}
    names = {n for n, _ in system.named_parameters()}
    trained = {n for n, p in system.named_parameters() if p.requires_grad}
    settings = TrainingSettings(
        steps=2,
        batch_size=4,
        micro_batch_size=2,
        learning_rate=1e-2,
        intermediate_learning_rate=1e-9,  # the joint run's, under which nothing would move
        beta=0.1,
    )
    train_separately(system, pairs, settings, tmp_path)
    assert {n for n, _ in system.named_parameters()} == names
    assert {n for n, p in system.named_parameters() if p.requires_grad} == trained
    assert not any(m.training for name in system.components for m in system.component(name).model.modules())
    with torch.no_grad():
        for name, value in system.reference_log_prob(rows).items():
            assert torch.allclose(value, untrained[name], atol=1e-5), name
        for name, value in system.log_prob(rows).items():
            assert not torch.allclose(value, untrained[name], atol=1e-3), name
    for name in system.components:
        component = system.component(name)
        component.save(str(tmp_path / name))
        assert not [p for p in (tmp_path / name).iterdir() if p.is_dir()]
        assert isinstance(component.model, PeftModel)


TWO_AT_A_TIME = {"batch_size": 4, "micro_batch_size": 2, "checkpoint_every": 2}


def train_alone(folder: Path, changes: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[tuple[str, int, float]]]:
    """The weights that Separate-DPO trains, and (component, step, loss) of each logged line."""
    folder.mkdir(exist_ok=True)
    system = make_two_llm()
    settings = TrainingSettings(**{"learning_rate": 1e-2, "beta": 0.1, **changes})
    train_separately(system, make_pairs_for(system, 6), settings, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = {n: p.detach().clone() for n, p in system.named_parameters() if p.requires_grad}
    return weights, [(line["component"], line["step"], line["loss"]) for line in lines]


@lru_cache
def undisturbed(settings: tuple[tuple[str, Any], ...]) -> tuple[dict[str, Tensor], list[tuple[str, int, float]]]:
    with TemporaryDirectory() as folder:
        return train_alone(Path(folder), dict(settings))


@pytest.mark.parametrize(
    ("steps", "interrupted", "kept"),
    [
        (4, ("psi1", 1), 0),
        (4, ("psi1", 3), 2),
        (4, ("psi2", 1), 4),
        (4, ("psi2", 3), 6),
        (3, ("psi2", 1), 3),  # no whole number of epochs: TRL would begin another for a component that is done
        (3, ("psi2", 3), 5),
    ],
)
def test_separate_dpo_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: int, interrupted: tuple[str, int], kept: int
) -> None:
    """Killed before the first checkpoint, after it, and likewise when the first component is done."""
    settings = TWO_AT_A_TIME | {"steps": steps}
    expected, logged = undisturbed(tuple(settings.items()))
    started: list[tuple[str, int]] = []
    on_log = Record.on_log

    def record(self: Record, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        on_log(self, args, state, control, logs, **more)
        if logs and "loss" in logs:
            started.append((self.component, state.global_step))
            if started.count(interrupted) == 1 and started[-1] == interrupted:
                raise KeyboardInterrupt

    monkeypatch.setattr(Record, "on_log", record)
    with pytest.raises(KeyboardInterrupt):
        train_alone(tmp_path / "halves", settings)
    before = len(started)
    weights, again = train_alone(tmp_path / "halves", settings)
    assert [line[:2] for line in again] == [line[:2] for line in logged]
    assert [line[2] for line in again] == pytest.approx([line[2] for line in logged], abs=1e-6)
    for name, value in weights.items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert len(started) - before == 2 * steps - kept  # only what no checkpoint holds is done again


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing=0.1"),
        ({"link": "ipo"}, "training.link=ipo"),
        ({"batch_size": 4, "micro_batch_size": 3}, "multiple"),
    ],
)
def test_separate_dpo_refuses_what_trl_would_do_otherwise(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    defaults = {"steps": 1, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-3, "beta": 0.1}
    system = make_two_llm()
    with pytest.raises(SettingError, match=part):
        train_separately(system, make_pairs_for(system, 2), TrainingSettings(**(defaults | changes)), tmp_path)


@pytest.mark.parametrize("harm", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json", "stage.json"])
def test_a_damaged_checkpoint_of_trl_is_passed_over(tmp_path: Path, harm: str) -> None:
    """Without its optimizer TRL would go on, to other weights."""
    settings = {"steps": 3, "batch_size": 4, "micro_batch_size": 4, "checkpoint_every": 1}
    expected, _ = undisturbed(tuple(settings.items()))
    train_alone(tmp_path, settings | {"steps": 2})
    (tmp_path / "checkpoints" / "psi1" / "checkpoint-2" / harm).unlink()
    (tmp_path / "metrics.jsonl").unlink()
    weights, lines = train_alone(tmp_path, settings)
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in weights.items())
    assert [line[:2] for line in lines] == [(c, s) for c in ("psi1", "psi2") for s in (1, 2, 3)]
    with pytest.raises(SettingError, match=r"another training.beta \(0.1, here 0.5\)"):
        train_alone(tmp_path, settings | {"beta": 0.5})


def test_separate_dpo_names_the_row_of_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    system = make_two_llm()
    target = next(p for p in system.component("psi2").parameters() if p.requires_grad)
    settings = TrainingSettings(steps=2, batch_size=1, micro_batch_size=1, learning_rate=1e-2, beta=0.1)
    with torch.no_grad():
        target.fill_(torch.nan)
    with pytest.raises(SettingError, match=r"step 1: the loss is not finite \(component psi2, row \d of the data\)"):
        train_separately(system, make_pairs_for(system, 2), settings, tmp_path)
