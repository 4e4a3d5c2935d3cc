"""The loop on tiny systems: exact starts, symmetry, accumulation, resuming, freezing, early stop, checkpoints."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sysdpo.components.tabular import Tabular
from sysdpo.errors import SettingError
from sysdpo.experiment.run import sampling_means
from sysdpo.graph import SystemGraph
from sysdpo.losses import preference_loss
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import DiverseBeam, Sampler, most_contrasting
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.checkpoints import read_checkpoint, trainable_state, write_checkpoint
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.objectives import Comparison, Direct, Sampling
from tests.systems import make_five_nodes, make_pairs_for, make_two_llm, make_with_tool, perturb

SYSTEMS = {"two_llm": make_two_llm, "five_nodes": make_five_nodes, "with_tool": make_with_tool}
OBJECTIVES: dict[str, Any] = {
    "direct": Direct(),
    "beams": Sampling(Sampler(2, DiverseBeam(diversity_penalty=10.0))),
    "monte_carlo": Sampling(Sampler(2, MonteCarlo())),
    "contrastive": Sampling(Sampler(2, MonteCarlo(), candidates=4)),
    "importance": Sampling(Sampler(2, MonteCarlo(distinct=False)), "importance"),
}
on_every_system = pytest.mark.parametrize("make", SYSTEMS.values(), ids=SYSTEMS.keys())
with_every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def settings(**changes: Any) -> TrainingSettings:
    defaults = {"steps": 4, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2, "beta": 0.1}
    return TrainingSettings(**{**defaults, "checkpoint_every": 100, **changes})


def train(
    system: CompoundSystem, pairs: Sequence[Pair], folder: Path, objective: Any = None, **changes: Any
) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    validation = changes.pop("validation", ())
    Trainer(system, objective or Direct(), pairs, validation, settings(**changes), folder).run()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def swapped(pairs: Sequence[Pair]) -> list[Pair]:
    return [Pair(p.index, p.inputs, p.rejected, p.chosen, p.extra) for p in pairs]


@on_every_system
@with_every_objective
def test_before_training_margin_is_0_and_loss_ln_2_exactly(
    make: Callable[..., Any], objective: Any, tmp_path: Path
) -> None:
    system = make()
    pairs = make_pairs_for(system, 4)
    compared = objective.compare(system, pairs, [0, 1, 2, 3])
    assert compared.margin.tolist() == [0.0] * 4
    first = train(system, pairs, tmp_path, objective, steps=1)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/margins"] == first["rewards/chosen"] == first["rewards/accuracies"] == 0.0
    assert first["grad_norm"] > 0


@on_every_system
@with_every_objective
def test_swapping_chosen_and_rejected_flips_the_margin(make: Callable[..., Any], objective: Any) -> None:
    system = make()
    pairs = make_pairs_for(system, 3)
    perturb(system, 0.1)
    with torch.no_grad():
        forward = objective.compare(system, pairs, [5, 6, 7])
        backward = objective.compare(system, swapped(pairs), [5, 6, 7])
    assert forward.margin.abs().min() > 1e-3
    assert torch.allclose(forward.margin, -backward.margin, atol=2e-5)
    assert torch.allclose(forward.chosen, backward.rejected, atol=2e-5)
    assert torch.allclose(forward.margin, forward.chosen - forward.rejected, atol=2e-5)


def sequence_ratio(system: CompoundSystem, pair: Pair, side: str) -> float:
    """Eq. 3 written out: one component call a variable, one row at a time."""
    row, total = pair.row(side), 0.0
    for variable in system.graph.generated:
        component = system.component(str(variable.component))
        parents = [{alias: row[name] for alias, name in variable.parents}]
        with torch.no_grad():
            total += float(component.log_ratio([row[variable.name]], parents))
    return total


@on_every_system
def test_the_direct_margin_is_the_sum_over_the_graph(make: Callable[..., Any]) -> None:
    system = make()
    pairs = make_pairs_for(system, 3)
    perturb(system, 0.1)
    compared = Direct().compare(system, pairs, [0, 1, 2])
    expected = [sequence_ratio(system, p, "chosen") - sequence_ratio(system, p, "rejected") for p in pairs]
    assert compared.margin.tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.stack(list(compared.terms.values())).sum(0).tolist() == pytest.approx(expected, abs=1e-4)


def test_shared_weights_get_the_sum_of_their_nodes_gradients() -> None:
    """The same graph with a copy of the component in each node: one gradient a copy."""
    shared = make_five_nodes()
    pairs = make_pairs_for(shared, 3)
    perturb(shared.component("b"), 0.1)
    parts = {"a": shared.component("a"), "c": shared.component("c")}
    parts |= {side: copy.deepcopy(shared.component("b")) for side in ("left", "right")}
    variables = {v.name: {"role": v.role, "component": v.component, "parents": dict(v.parents)} for v in shared.graph}
    for side in ("left", "right"):
        variables[side]["component"] = side
    apart = CompoundSystem(SystemGraph(variables), parts)
    gradients = []
    for system, names in ((shared, ["b"]), (apart, ["left", "right"])):
        system.zero_grad()
        preference_loss(Direct().compare(system, pairs, [0, 1, 2]).margin, 0.1).sum().backward()
        found = [dict(system.component(name).named_parameters()) for name in names]
        gradients.append({n: sum(f[n].grad for f in found) for n, p in found[0].items() if p.requires_grad})  # type: ignore[misc]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5, rtol=1e-4), name
        assert gradient.abs().max() > 0, name


def test_the_sampling_margin_is_equation_9_over_the_samples_drawn() -> None:
    system = make_five_nodes()
    pairs = make_pairs_for(system, 3)
    perturb(system, 0.1)
    objective = Sampling(Sampler(3, DiverseBeam(10.0)))
    compared = objective.compare(system, pairs, [0, 1, 2])
    for b, (pair, samples) in enumerate(zip(pairs, objective.draw(system, pairs, [0, 1, 2]), strict=True)):
        assert len(samples) == 3
        assert all(set(s) == {"plan", "left", "right"} for s in samples)
        marginals = {}
        for side in ("chosen", "rejected"):
            rows = [{**pair.inputs, **sample, "answer": pair.row(side)["answer"]} for sample in samples]
            with torch.no_grad():
                policy = sum(system.log_prob(rows).values())
                reference = sum(system.reference_log_prob(rows).values())
            marginals[side] = policy.logsumexp(0) - reference.logsumexp(0)  # type: ignore[union-attr]
        expected = float(marginals["chosen"] - marginals["rejected"])
        assert compared.margin[b].item() == pytest.approx(expected, abs=1e-4)


class TestDraws:
    """What a pair gets for its intermediates is a matter of its seed and its input alone."""

    @pytest.mark.parametrize("draw", [DiverseBeam(10.0), MonteCarlo()], ids=["beams", "monte_carlo"])
    def test_pairs_with_one_prompt_do_not_share_their_samples(self, draw: Any) -> None:
        system = make_two_llm()
        one, other = make_pairs_for(system, 2)
        twin = Pair(1, one.inputs, one.rejected, one.chosen)
        objective = Sampling(Sampler(2, draw))
        together = objective.draw(system, [one, twin, other], [1, 2, 3])
        alone = [objective.draw(system, [p], [s])[0] for p, s in ((one, 1), (twin, 2), (other, 3))]
        assert together == alone
        assert all(len(samples) == 2 for samples in together)

    def test_groups_may_be_larger_than_what_is_left_to_spread(self) -> None:
        """After the first variable has parted the samples, each asks the second for a single beam."""
        system = make_with_tool()
        variables = {
            v.name: {"role": v.role, "component": v.component, "parents": dict(v.parents)} for v in system.graph
        }
        variables["second"] = {"role": "intermediate", "component": "asker", "parents": {"x": "found"}}
        variables["answer"]["parents"] = {"x": "x", "found": "second"}
        chain = CompoundSystem(SystemGraph(variables), dict(system.components))
        samples = Sampling(Sampler(4, DiverseBeam(10.0, groups=2))).draw(chain, make_pairs_for(chain, 1), [0])[0]
        assert len(samples) == 4

    def test_missing_samples_are_counted(self) -> None:
        table = Tabular(["a", "b"], {"x": ["p"]}, [[9.0, -9.0]])
        last = Tabular([0, 1], {"y": ["a", "b"]}, [[0.0, 0.0], [1.0, 0.0]])
        graph = SystemGraph(
            {
                "x": {"role": "input"},
                "y": {"role": "intermediate", "component": "t", "parents": ["x"]},
                "z": {"role": "final", "component": "u", "parents": ["y"]},
            }
        )
        system = CompoundSystem(graph, {"t": table, "u": last})
        pair = Pair(0, {"x": "p"}, {"z": 0}, {"z": 1})
        compared = Sampling(Sampler(5, MonteCarlo())).compare(system, [pair], [0])
        assert compared.counts == {"samples": 1.0, "samples_missing": 4.0}
        mixed = Sampling(Sampler(2, DiverseBeam(100.0))).compare(system, [pair], [0])
        assert mixed.counts == {"samples": 2.0, "samples_missing": 0.0}

    def test_joint_monte_carlo_samples_are_independent_draws(self) -> None:
        """Two branches of one parent: every combination has the product of its probabilities."""
        half = [[0.0, 0.0]]
        parts = {"a": Tabular([0, 1], {"x": ["p"]}, half), "b": Tabular([0, 1], {"x": ["p"]}, half)}
        parts["c"] = Tabular([0, 1], {"l": [0, 1], "r": [0, 1]})
        graph = SystemGraph(
            {
                "x": {"role": "input"},
                "l": {"role": "intermediate", "component": "a", "parents": ["x"]},
                "r": {"role": "intermediate", "component": "b", "parents": ["x"]},
                "z": {"role": "final", "component": "c", "parents": ["l", "r"]},
            }
        )
        system = CompoundSystem(graph, parts)
        pairs = [Pair(i, {"x": "p"}, {"z": 0}, {"z": 1}) for i in range(3000)]
        # Four independent joint draws hit k different ones of four with these probabilities (Stirling numbers):
        expected = {1: 4 / 256, 2: 84 / 256, 3: 144 / 256, 4: 24 / 256}
        drawn = Sampling(Sampler(4, MonteCarlo(distinct=False))).draw(system, pairs, range(3000))
        for count, p in expected.items():
            share = sum(len(samples) == count for samples in drawn) / 3000
            assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 3000)

    def test_most_contrasting_takes_both_ends(self) -> None:
        assert most_contrasting(torch.tensor([0.1, 3.0, -2.0, 1.0])) == [1, 2]
        assert most_contrasting(torch.tensor([1.0, 1.0, 1.0])) == [0, 1]
        assert most_contrasting(torch.tensor([1.0])) == [0]

    def test_the_contrastive_choice_keeps_the_two_ends_of_its_candidates(self) -> None:
        system = make_two_llm()
        pairs = make_pairs_for(system, 2)
        objective = OBJECTIVES["contrastive"]
        every = Sampling(Sampler(4, MonteCarlo())).draw(system, pairs, [3, 4])
        for pair, candidates, kept in zip(pairs, every, objective.draw(system, pairs, [3, 4]), strict=True):
            odds = []
            for c in candidates:
                parents = [{"x": pair.inputs["x"], "y": c["y"]}] * 2
                with torch.no_grad():
                    scores = system.component("psi2").log_prob([pair.chosen["z"], pair.rejected["z"]], parents)
                odds.append(float(scores[0] - scores[1]))
            assert kept == [candidates[odds.index(max(odds))], candidates[odds.index(min(odds))]]

    @pytest.mark.parametrize(
        ("build", "part"),
        [
            (lambda: Sampler(0, MonteCarlo()), "sampler.k=0"),
            (lambda: Sampler(2, DiverseBeam(groups=3)), "more beam groups than the 2 beams"),
            (lambda: Sampler(3, DiverseBeam(groups=2)), "divisor"),
            (lambda: Sampler(2, MonteCarlo(), candidates=1), "sampler.candidates=1"),
            (lambda: DiverseBeam(groups=0), "groups=0"),
            (lambda: DiverseBeam(diversity_penalty=-1.0), "diversity_penalty=-1.0"),
        ],
    )
    def test_refusals(self, build: Callable[[], Any], part: str) -> None:
        with pytest.raises(SettingError, match=part):
            build()


@pytest.mark.parametrize("objective", [OBJECTIVES[name] for name in ("direct", "beams", "monte_carlo", "importance")])
def test_accumulation_1x8_equals_8x1(objective: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pairs are scored at a time, and for however many samples are drawn at a time."""
    runs = []
    draw, sizes = Sampling.draw, []  # type: ignore[var-annotated]
    monkeypatch.setattr(Sampling, "draw", lambda *given: (sizes.append(len(given[2])), draw(*given))[1])
    expected = {(8, None): [8], (3, None): [3, 3, 2], (1, None): [1] * 8, (1, 8): [8], (3, 5): [5, 3]}
    for (micro, at_once), drawn in expected.items():
        sizes.clear()
        system = make_two_llm()
        pairs = make_pairs_for(system, 8)
        pairs[5] = Pair(5, pairs[2].inputs, pairs[2].rejected, pairs[5].chosen)  # one prompt twice in a batch
        changes = {"steps": 2, "batch_size": 8, "micro_batch_size": micro, "draw_batch_size": at_once}
        rows = train(system, pairs, tmp_path / f"{micro}-{at_once}", objective, **changes)
        assert sizes == ([] if isinstance(objective, Direct) else drawn * 2)
        runs.append((rows, trainable_state(system)))
    for rows, state in runs[1:]:
        for row, whole in zip(rows, runs[0][0], strict=True):
            for name in ("loss", "rewards/margins", "grad_norm", "logps/chosen"):
                assert row[name] == pytest.approx(whole[name], abs=1e-5, rel=1e-5), name
        for name, value in state.items():
            # AdamW divides by the gradient's own size, so that rounding of a vanishing gradient can show
            assert torch.allclose(value, runs[0][1][name], atol=5e-4), name


def test_pairs_of_like_lengths_share_a_micro_batch(tmp_path: Path) -> None:
    """Long, short, long, short, two at a time: sorted, no text is padded to another's length; all else is equal."""
    runs = []
    for sort in (False, True):
        system, seen = make_two_llm(max_new_tokens=40), []  # type: ignore[var-annotated]
        texts = ["a long one " * 3, "b", "a longer one " * 3, "c"]
        pairs = [Pair(i, {"x": t}, {"y": t, "z": t}, {"y": t, "z": t + "!"}) for i, t in enumerate(texts)]
        embeddings = system.component("psi1").causal_lm.get_input_embeddings()  # type: ignore[operator, union-attr]
        embeddings.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].numel()))
        changes = {"steps": 1, "micro_batch_size": 2, "sort_by_length": sort, "learning_rate": 1e-3}
        rows = train(system, pairs, tmp_path / str(sort), **changes)
        runs.append((sum(seen), rows[0], trainable_state(system)))
    (apart, first, state), (sorted_, second, same) = runs
    assert sorted_ < 0.7 * apart
    for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
        assert second[name] == pytest.approx(first[name], rel=1e-5), name
    for name, value in state.items():
        assert torch.allclose(value, same[name], atol=1e-4), name


@pytest.mark.parametrize("objective", [OBJECTIVES[name] for name in ("direct", "beams", "monte_carlo", "importance")])
def test_a_run_stopped_at_step_k_goes_on_as_if_it_had_not(
    objective: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"steps": 6, "batch_size": 2, "warmup_steps": 4, "validate_every": 2, "checkpoint_every": 2}
    validation = make_pairs_for(make_two_llm(), 2, seed=50)

    def run(name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        system = make_two_llm()
        pairs = make_pairs_for(system, 5)
        rows = train(system, pairs, tmp_path / name, objective, validation=validation, **changes)
        return rows, trainable_state(system)

    whole, expected = run("whole")
    update = Trainer._update

    def killed_at_step_5(self: Trainer) -> dict[str, float]:
        if self.step == 5:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", killed_at_step_5)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    log = tmp_path / "stopped" / "metrics.jsonl"
    assert len(log.read_text().splitlines()) == 5
    with log.open("a") as file:
        file.write('{"step": 6, "loss"')  # killed in the middle of a line
    resumed, actual = run("stopped")
    assert [row["step"] for row in resumed] == [1, 2, 3, 4, 5, 6]
    for row, reference in zip(resumed, whole, strict=True):
        assert row.keys() == reference.keys()
        for name in reference.keys() - {"seconds"}:
            assert row[name] == pytest.approx(reference[name], abs=1e-5, rel=1e-4), (row["step"], name)
    for name, value in actual.items():
        assert torch.allclose(value, expected[name], atol=5e-4), name


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    system = make_two_llm()
    pairs = make_pairs_for(system, 4)
    train(system, pairs, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    fresh = make_two_llm()
    train(fresh, pairs, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    for name, value in trainable_state(fresh).items():
        assert torch.equal(value, trainable_state(system)[name])


class TestFreezing:
    @pytest.mark.parametrize("objective", [OBJECTIVES["direct"], OBJECTIVES["beams"]])
    def test_frozen_components_get_no_gradient_and_do_not_move(self, objective: Any, tmp_path: Path) -> None:
        system = make_two_llm()
        pairs = make_pairs_for(system, 4)
        before = {n: p.detach().clone() for n, p in system.named_parameters()}
        system.train_only(["psi2"])
        assert system.trainable == ["psi2"]
        rows = train(system, pairs, tmp_path, objective)
        assert "grad_norm/psi2" in rows[0]
        assert "grad_norm/psi1" not in rows[0]
        for name, parameter in system.named_parameters():
            moved = not torch.equal(parameter, before[name])
            assert moved == ("psi2" in name and "lora_" in name), name
            assert (parameter.grad is not None) == moved, name

    def test_the_loss_is_that_of_the_whole_system(self) -> None:
        """Freezing stops gradients; for one that has not moved, the margin is the same either way."""
        system = make_two_llm()
        pairs = make_pairs_for(system, 3)
        perturb(system.component("psi2"), 0.1)
        both = Direct().compare(system, pairs, [0, 1, 2]).margin
        system.train_only(["psi2"])
        assert torch.allclose(Direct().compare(system, pairs, [0, 1, 2]).margin, both, atol=1e-5)

    def test_unknown_and_untrainable_names_are_refused(self, tmp_path: Path) -> None:
        system = make_with_tool()
        with pytest.raises(SettingError, match=r"train: this system has no component 'psi9'"):
            system.train_only(["psi9"])
        system.train_only(["search"])
        with pytest.raises(SettingError, match="no component has trainable weights"):
            train(system, make_pairs_for(system, 2), tmp_path)

    def test_learning_rates_by_component(self, tmp_path: Path) -> None:
        system = make_two_llm()
        rows = train(system, make_pairs_for(system, 4), tmp_path, learning_rates={"psi1": 1e-5}, warmup_steps=2)
        assert rows[0]["learning_rate/psi1"] == pytest.approx(5e-6)
        assert rows[1]["learning_rate/psi1"] == pytest.approx(1e-5)
        assert rows[3]["learning_rate/psi2"] == pytest.approx(1e-2)
        with pytest.raises(SettingError, match=r"learning_rates: unknown 'psi'; did you mean 'psi"):
            train(system, make_pairs_for(system, 4), tmp_path, learning_rates={"psi": 1e-5})


class Scripted:
    """Direct, but validation margins follow a script: a peak at the second validation, then decline."""

    needs_intermediates = True
    margins = (0.5, 2.0, 1.0, -1.0, 0.0, 0.0)

    def __init__(self) -> None:
        self.seen = 0

    def check(self, system: CompoundSystem) -> None: ...

    def compare(self, system: CompoundSystem, pairs: Sequence[Pair], seeds: Sequence[int]) -> Comparison:
        compared = Direct().compare(system, pairs, seeds)
        if torch.is_grad_enabled():
            return compared
        margin = torch.full_like(compared.margin, self.margins[self.seen])
        self.seen += 1
        return Comparison(margin, compared.chosen, compared.rejected, compared.chosen_likelihood)


def test_the_log_tells_what_the_samples_were_worth(tmp_path: Path) -> None:
    """Means over the pairs of every update, and over the updates in the end; Direct has no samples."""
    system = make_two_llm()
    pairs = make_pairs_for(system, 4)
    rows = train(system, pairs, tmp_path / "sum", OBJECTIVES["beams"], steps=2, micro_batch_size=3, beta=1.0)
    with torch.no_grad():
        trained = OBJECTIVES["beams"].compare(make_two_llm(), pairs, [p.index for p in pairs])
    first = rows[0]
    for name in ("effective_samples", "effective_samples_chosen", "effective_samples_rejected", "total_variation"):
        assert first[f"sampling/{name}"] == pytest.approx(float(trained.sampling[name].mean()), abs=1e-5), name
    sides = first["sampling/effective_samples_chosen"] + first["sampling/effective_samples_rejected"]
    assert first["sampling/effective_samples"] == pytest.approx(sides / 2)
    assert 1 <= first["sampling/effective_samples"] <= 2
    assert 0 <= first["sampling/total_variation"] <= 1
    means = sampling_means(rows)
    assert means["sampling/total_variation"] == pytest.approx(sum(r["sampling/total_variation"] for r in rows) / 2)
    assert means["grad_norm/psi1"] == pytest.approx(sum(r["grad_norm/psi1"] for r in rows) / 2)
    assert not any("validation" in name or name == "grad_norm" for name in means)
    assert sampling_means(train(make_two_llm(), pairs, tmp_path / "direct", steps=1)) == {}


def test_early_stop_keeps_the_best_weights(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"validate_every": 1, "patience": 2, "steps": 6, "checkpoint_every": 1}
    system = make_two_llm()
    pairs = make_pairs_for(system, 4)
    rows = train(system, pairs, tmp_path / "stopped", Scripted(), validation=pairs[:2], **changes)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]  # two validations after the peak
    short = make_two_llm()
    train(short, pairs, tmp_path / "short", steps=2)
    for name, value in trainable_state(short).items():
        assert torch.allclose(trainable_state(system)[name], value, atol=1e-6), name
    again = Trainer(make_two_llm(), Scripted(), pairs, pairs[:2], settings(**changes), tmp_path / "stopped")
    best = again.run()
    assert (best.step, best.margin) == (2, pytest.approx(0.2))  # beta times the margin
    assert again.step == 4


def test_without_validation_the_last_weights_are_the_best_ones(tmp_path: Path) -> None:
    system = make_two_llm()
    trainer = Trainer(system, Direct(), make_pairs_for(system, 4), [], settings(steps=3), tmp_path)
    assert trainer.run().step == 3


def test_weights_that_never_beat_the_start_are_not_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Falling(Scripted):
        margins = (-1.0, -2.0, -3.0, -4.0)

    system = make_two_llm()
    pairs, before = make_pairs_for(system, 4), trainable_state(system)
    train(system, pairs, tmp_path, Falling(), validation=pairs[:2], validate_every=1)
    for name, value in trainable_state(system).items():
        assert torch.equal(value, before[name]), name
    assert "training.validate_every=0" in caplog.text


def test_training_raises_the_margin_of_what_it_is_shown(tmp_path: Path) -> None:
    for name, objective in OBJECTIVES.items():
        system = make_two_llm()
        pairs = make_pairs_for(system, 4)
        rows = train(system, pairs, tmp_path / name, objective, steps=12)
        assert rows[-1]["rewards/margins"] > 0.1, name
        assert rows[-1]["loss"] < rows[0]["loss"], name


class TestCheckpoints:
    def test_a_killed_write_leaves_the_previous_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_checkpoint(tmp_path, {"step": 1})

        def killed(_: Any, path: Path) -> None:
            Path(path).write_bytes(b"half a file")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                write_checkpoint(tmp_path, {"step": 2})
        assert read_checkpoint(tmp_path) == {"step": 1}
        write_checkpoint(tmp_path, {"step": 3}, keep=1)
        assert read_checkpoint(tmp_path) == {"step": 3}
        assert len(list(tmp_path.iterdir())) == 1

    def test_nothing_written_is_nothing_read(self, tmp_path: Path) -> None:
        assert read_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"steps": 0}, "training.steps=0"),
        ({"batch_size": 0}, "training.batch_size=0"),
        ({"micro_batch_size": -1}, "training.micro_batch_size=-1"),
        ({"draw_batch_size": 0}, "training.draw_batch_size=0"),
        ({"learning_rate": 0.0}, "training.learning_rate=0.0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"patience": 2}, "patience=2"),
        ({"patience": 0, "validate_every": 1}, "training.patience=0"),
        ({"steps": "many"}, "training.steps=many"),
        ({"steps": 1.5}, "training.steps=1.5"),
        ({"warmup_steps": -1}, "training.warmup_steps=-1"),
        ({"learning_rate": "fast"}, "training.learning_rate=fast"),
        ({"max_grad_norm": math.nan}, "training.max_grad_norm=nan"),
        ({"weight_decay": -0.1}, "training.weight_decay=-0.1"),
        ({"link": "sigmoidd"}, "did you mean 'sigmoid'"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"label_smoothing": 0.1, "link": "ipo"}, "link=ipo"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingError, match=part):
        settings(**changes)


def test_what_cannot_be_trained_is_refused_before_the_first_step(tmp_path: Path) -> None:
    system = make_two_llm()
    pairs = make_pairs_for(system, 2)
    with pytest.raises(SettingError, match="data set is empty"):
        Trainer(system, Direct(), [], [], settings(), tmp_path)
    with pytest.raises(SettingError, match="validate_every=2 but there is no validation pair"):
        Trainer(system, Direct(), pairs, [], settings(validate_every=2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_gradient_that_is_not_finite_is_an_error_not_a_ruined_model(tmp_path: Path) -> None:
    system = make_two_llm()
    pairs = make_pairs_for(system, 2)
    with torch.no_grad():
        next(p for p in system.parameters() if p.requires_grad).fill_(torch.inf)
    with pytest.raises(SettingError, match=r"step 1: the loss is not finite \(component psi1, row 1, 2 of"):
        train(system, pairs, tmp_path)
