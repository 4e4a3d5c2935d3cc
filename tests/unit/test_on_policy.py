"""On-policy training: what is drawn again, mixed, preferred, counted, followed, and repeated after an interruption."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sysdpo.data.redraw import JudgedPairs
from sysdpo.errors import SettingError
from sysdpo.evaluation.measures import WinRates
from sysdpo.experiment.credit import credit
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.system import CompoundSystem, Pair
from sysdpo.tasks.verifiable.judge import OracleJudge
from sysdpo.training.checkpoints import trainable_state
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.objectives import Direct, Sampling
from sysdpo.training.on_policy import OnPolicy, taken
from tests.image_systems import make_image_pairs, make_llm_diffusion
from tests.systems import make_pairs_for, make_two_llm, perturb

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "micro_batch_size": 4,
    "learning_rate": 1e-2,
    "beta": 0.1,
    "checkpoint_every": 1,
    "keep_checkpoints": None,
    "redraw_every": 2,
    "replay": 0.25,
}


class ByBrightness:
    """Prefers by a number that any output has: length of a text, mean of its pictures."""

    def __init__(self) -> None:
        self.calls = 0

    def scores(
        self, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sequence[Mapping[str, Any]]]
    ) -> tuple[list[list[float]], int]:
        self.calls += sum(map(len, samples))
        return [[_size(output["z"]) for output in own] for own in samples], sum(map(len, samples))


def _size(value: Any) -> float:
    if isinstance(value, str):
        return float(sum(value.encode()))
    return sum(float(picture.float().mean()) for picture in value)


def trainer(
    system: CompoundSystem, pairs: Sequence[Pair], folder: Path, objective: Any = None, **changes: Any
) -> Trainer:
    settings = TrainingSettings(**{**SETTINGS, **changes})
    redraw = JudgedPairs(system, pairs, ByBrightness(), folder / "redrawn", samples=3, seed=settings.seed)
    return Trainer(system, objective or Direct(), pairs, (), settings, folder, redraw=redraw)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_fresh_pairs_come_from_the_current_system_best_against_worst(tmp_path: Path) -> None:
    system = make_two_llm()
    pairs = make_pairs_for(system, 5)
    perturb(system, 0.2)
    made = JudgedPairs(system, pairs, ByBrightness(), tmp_path, samples=3, seed=7)
    fresh, took = made.draw(4, [3, 0])
    assert took == {"answers": 6.0, "judge_calls": 6.0}
    assert [pair.index for pair in fresh] == [3, 0]
    for pair in fresh:
        assert pair.inputs == pairs[pair.index].inputs
        assert pair.extra["chosen_score"] > pair.extra["rejected_score"]
        assert _size(pair.chosen["z"]) == pair.extra["chosen_score"]
    assert made.read(4) == fresh
    with system.untrained():
        before, _ = JudgedPairs(system, pairs, ByBrightness(), tmp_path / "u", samples=3, seed=7).draw(4, [3, 0])
    assert before != fresh


def test_an_update_mixes_fresh_pairs_with_the_replayed_share(tmp_path: Path) -> None:
    """Of 4 pairs, a replayed share of 0.25 is one; a redraw asks for 2 x 3 prompts."""
    system = make_two_llm()
    pairs = make_pairs_for(system, 9)
    run = trainer(system, pairs, tmp_path)
    seen: list[tuple[int, int]] = []
    batch = run.on_policy.batch

    def counted(step: int) -> list[Pair]:
        found = batch(step)
        fresh = [pair for pair in found if "chosen_score" in pair.extra]
        seen.append((len(found) - len(fresh), len(fresh)))
        return found

    run.on_policy.batch = counted  # type: ignore[method-assign]
    run.run()
    assert seen == [(4, 0), (4, 0), (1, 3), (1, 3), (1, 3), (1, 3)]
    log = lines(tmp_path)
    redraws = [row for row in log if "redraw/prompts" in row]
    assert [row["step"] for row in redraws] == [3, 5]
    for row in redraws:
        assert row["redraw/prompts"] == 6
        assert row["redraw/answers"] == row["redraw/judge_calls"] == 18
        assert row["redraw/pairs"] <= 6


def test_all_prompts_have_their_turn() -> None:
    system = make_two_llm()
    pairs = make_pairs_for(system, 6)
    settings = TrainingSettings(**{**SETTINGS, "replay": 0.0, "batch_size": 1, "redraw_every": 2})
    policy = OnPolicy(system, settings, [*pairs, *pairs], 1, 0, redraw=object())  # type: ignore[arg-type]
    rounds = [policy._prompts(i) for i in range(3)]  # six prompts, each in two pairs
    assert sorted(i for each in rounds for i in each) == [0, 1, 2, 3, 4, 5]


def test_an_endless_sequence_shuffles_every_round() -> None:
    everything = taken("abcd", 3, 0, 12)
    assert [sorted(everything[i : i + 4]) for i in (0, 4, 8)] == [list("abcd")] * 3
    assert taken("abcd", 3, 5, 9) == everything[5:9]


@pytest.mark.parametrize(
    ("kind", "reference"), [("direct", "fixed"), ("direct", "previous"), ("sampling", "ema"), ("image", "previous")]
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    kind: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Callable[[], CompoundSystem] = make_llm_diffusion if kind == "image" else make_two_llm
    objective = Sampling(k=2, draw=MonteCarlo()) if kind == "sampling" else Direct()

    def run(name: str) -> dict[str, torch.Tensor]:
        system = make()
        trainer(system, make_image_pairs(5) if kind == "image" else make_pairs_for(system, 5), tmp_path / name,
                objective, reference=reference).run()  # fmt: skip
        return trainable_state(system)

    expected = run("whole")
    update = Trainer._update

    def killed_at_step_5(self: Trainer) -> dict[str, float]:
        if self.step == 5:  # a checkpoint, one update after the second redraw
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", killed_at_step_5)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    for file in (tmp_path / "stopped" / "checkpoints").glob("step=5.pt"):
        file.unlink()  # and once more from the update before which pairs were redrawn
    resumed = run("stopped")
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(resumed[name], value, atol=5e-4), name
    for row, other in zip(lines(tmp_path / "stopped"), lines(tmp_path / "whole"), strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds"}:
            assert row[name] == pytest.approx(other[name], abs=1e-4, rel=1e-3), (row["step"], name)


class TestReference:
    def test_previous_makes_every_redraw_a_new_start(self, tmp_path: Path) -> None:
        """Policy = reference right after a redraw, so the loss is ln 2 again; under a fixed reference it is not."""
        for reference in ("previous", "fixed"):
            system = make_two_llm()
            trainer(system, make_pairs_for(system, 5), tmp_path / reference, reference=reference).run()
            losses = [row["loss"] for row in lines(tmp_path / reference)]
            new_starts = [abs(loss - math.log(2)) < 1e-6 for loss in losses]
            expected = [True, False, reference == "previous", False, reference == "previous", False]
            assert new_starts == expected, reference

    def test_a_moving_average_moves_by_its_rate(self, tmp_path: Path) -> None:
        system = make_two_llm()
        start = trainable_state(system)
        changes = {"reference": "ema", "reference_decay": 0.75, "steps": 1, "redraw_every": 0, "replay": 0.0}
        run = trainer(system, make_pairs_for(system, 5), tmp_path, **changes)
        run.on_policy.close = lambda: None  # type: ignore[method-assign]
        run.run()
        assert run.on_policy.reference is not None
        for component, weights in run.on_policy.reference.items():
            for name, value in weights.items():
                key = f"components.{component}.{name}"
                expected = 0.75 * start[key] + 0.25 * trainable_state(system)[key]
                assert torch.allclose(value, expected, atol=1e-7), key

    def test_the_margin_is_that_against_a_frozen_system_with_the_followed_weights(self) -> None:
        """Values and gradients, with a second system as the independent reference."""
        system, frozen = make_two_llm(), make_two_llm()
        pairs = make_pairs_for(system, 3)
        for each in (system, frozen):
            perturb(each, 0.1, seed=1)
        weights = {
            name: {n: p.detach().clone() for n, p in system.component(name).named_parameters() if p.requires_grad}
            for name in system.trainable
        }
        for name, own in weights.items():
            system.component(name).follow(own)
        perturb(system, 0.1, seed=2)
        rows = [pair.row(side) for side in ("chosen", "rejected") for pair in pairs]
        compared = Direct().compare(system, pairs, [0, 1, 2])
        compared.margin.sum().backward()
        got = {n: p.grad.clone() for n, p in system.named_parameters() if p.grad is not None}
        system.zero_grad()
        policy, reference = system.log_prob(rows), frozen.log_prob(rows)
        chosen, rejected = sum(policy[v] - reference[v].detach() for v in policy).chunk(2)  # type: ignore[union-attr]
        assert torch.allclose(compared.margin, chosen - rejected, atol=1e-5)
        (chosen - rejected).sum().backward()
        for name, parameter in system.named_parameters():
            if parameter.grad is not None:
                assert torch.allclose(got[name], parameter.grad, atol=1e-5), name

    def test_validations_have_one_measure(self, tmp_path: Path) -> None:
        """Their margin is that against the untrained system, however far the reference has moved."""
        system = make_two_llm()
        pairs = make_pairs_for(system, 5)
        settings = TrainingSettings(**{**SETTINGS, "reference": "previous", "steps": 4, "validate_every": 4})
        redraw = JudgedPairs(system, pairs, ByBrightness(), tmp_path / "redrawn", samples=3)
        best = Trainer(system, Direct(), pairs, pairs[:2], settings, tmp_path, redraw=redraw).run()
        with torch.no_grad():
            margin = Direct().compare(system, pairs[:2], [0, 1]).margin
        assert best.margin == pytest.approx(SETTINGS["beta"] * float(margin.mean()), abs=1e-5)
        assert best.step == 4

    def test_evaluations_compare_with_the_untrained_system(self) -> None:
        system = make_two_llm()
        inputs = [{"x": "a"}, {"x": "b"}]
        before = system.generate(inputs, 3)
        perturb(system, 0.3)
        for name in system.trainable:
            component = system.component(name)
            component.follow({n: p.detach().clone() for n, p in component.named_parameters() if p.requires_grad})
        with system.reference():
            followed = system.generate(inputs, 3)
        with system.untrained():
            assert system.generate(inputs, 3) == before
        assert followed == system.generate(inputs, 3) != before


class TestLabels:
    def test_a_judge_with_scores_is_asked_once_an_answer(self) -> None:
        rates = WinRates(OracleJudge(0.1), "z")
        judged = _oracle_rows()
        scores, calls = rates.scores(judged, [[{"z": "LOUD"}, {"z": "soft"}], [{"z": "soft"}, {"z": "soft"}]])
        assert calls == 4
        assert scores[0][0] > scores[0][1]
        assert scores[1][0] == scores[1][1]

    def test_a_judge_of_pairs_compares_with_the_first(self) -> None:
        class Longer:
            name = "longer"

            def preferences(
                self, rows: Sequence[Mapping[str, Any]], references: Sequence[str], outputs: Sequence[str]
            ) -> list[float]:
                return [1.5 + 0.1 * (len(o) - len(r)) for r, o in zip(references, outputs, strict=True)]

        scores, calls = WinRates(Longer(), "z").scores(
            [{}, {}], [[{"z": "aa"}, {"z": "a"}, {"z": "aaaa"}], [{"z": ""}]]
        )
        assert calls == 2
        assert scores == [[0.0, pytest.approx(-0.1), pytest.approx(0.2)], [0.0]]


def _oracle_rows() -> list[dict[str, str]]:
    return [{"oracle": json.dumps({"task": [{"check": "letter_case", "style": "upper"}], "gate": []})}] * 2


def test_credit_adds_up_to_the_margin_of_each_pair() -> None:
    system = make_two_llm()
    pairs = [
        Pair(p.index, p.inputs, p.chosen, p.rejected, {"family": "even" if p.index % 2 == 0 else "odd"})
        for p in make_pairs_for(system, 5)
    ]
    perturb(system, 0.1)
    records = credit(system, Direct(), pairs, TrainingSettings(**SETTINGS))
    assert [record["family"] for record in records] == ["even", "odd", "even", "odd", "even"]
    assert [record["row"] for record in records] == [1, 2, 3, 4, 5]
    short = TrainingSettings(**{**SETTINGS, "steps": 4, "batch_size": 2})
    assert [record["row"] for record in credit(system, Direct(), pairs, short)] == [1, 3], "a quarter of what was read"
    for pair, record in zip(pairs, records, strict=True):
        own = {}
        for side, sign in (("chosen", 1), ("rejected", -1)):
            ratios = system.log_ratio([pair.row(side)])
            for variable, value in ratios.items():
                component = str(system.graph[variable].component)
                own[component] = own.get(component, 0.0) + sign * float(value)
        assert record["components"] == pytest.approx(own, abs=1e-4)
        assert record["margin"] == pytest.approx(sum(own.values()), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"replay": 1.0}, r"training\.replay=1\.0: must be less than 1"),
        ({"redraw_samples": 1}, r"training\.redraw_samples=1: must be at least 2"),
        ({"reference": "last"}, r"training\.reference: unknown 'last'"),
        ({"redraw_every": 0, "replay": 0.0, "reference": "previous"}, r"reference=previous needs fresh pairs"),
        ({"redraw_every": 0, "replay": 0.5}, r"replay=0\.5 needs fresh pairs"),
        ({"redraw_every": 4, "steps": 4}, r"redraw_every=4: no pair would be drawn anew in training\.steps=4"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError, match=line):
        TrainingSettings(**{**SETTINGS, **changes})


def test_redrawing_needs_somebody_who_prefers(tmp_path: Path) -> None:
    system = make_two_llm()
    with pytest.raises(SettingError, match="redraw_every=2 needs someone who prefers"):
        Trainer(system, Direct(), make_pairs_for(system, 3), (), TrainingSettings(**SETTINGS), tmp_path)
