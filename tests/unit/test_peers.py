"""The peers of SysDPO: what each learns from, in which order, and what it says that it took."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sysdpo.components.text.language_model import LanguageModel
from sysdpo.errors import SettingError
from sysdpo.evaluation.measures import WinRates
from sysdpo.losses import group_advantages, group_relative_loss
from sysdpo.peers.ddr import DataRewards
from sysdpo.peers.endpoint import Endpoint
from sysdpo.peers.magrpo import GroupRelative
from sysdpo.peers.prompts import FewShot
from sysdpo.peers.sft import ChosenSFT, completions
from sysdpo.peers.task import Task
from sysdpo.runs.folder import read_jsonl
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.checkpoints import trainable_state
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.objectives import WithoutReference
from tests.image_systems import make_llm_diffusion
from tests.systems import make_pairs_for, make_two_llm, make_with_tool, perturb

SETTINGS = TrainingSettings(steps=2, batch_size=4, micro_batch_size=2, learning_rate=1e-2, checkpoint_every=1)


class Bytes:
    """Prefers by the sum of an answer's bytes."""

    def scores(
        self, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sequence[Mapping[str, Any]]]
    ) -> tuple[list[list[float]], int]:
        final = "z" if "z" in samples[0][0] else "answer"
        return [[float(sum(o[final].encode())) for o in own] for own in samples], sum(map(len, samples))


def task(system: CompoundSystem, folder: Path, pairs: int = 4) -> Task:
    folder.mkdir(parents=True, exist_ok=True)
    return Task(system, make_pairs_for(system, pairs), Bytes(), SETTINGS, folder, batch_size=3)


class TestChosenSFT:
    def test_each_component_learns_its_own_variable_given_the_chosen_parents(self, tmp_path: Path) -> None:
        system = make_with_tool()
        given = task(system, tmp_path)
        rows = [pair.row("chosen") for pair in given.pairs]
        reader = system.component("reader")
        assert isinstance(reader, LanguageModel)
        for found, row in zip(completions(system, "reader", reader, rows), rows, strict=True):
            answer = [label for label in found["labels"] if label != -100]
            prompt = found["input_ids"][: -len(answer)]
            assert found["input_ids"] == prompt + answer
            assert answer == list(reader.codec.completion_ids(row["answer"]))
            assert prompt == list(reader.codec.prompt_ids({"x": row["x"], "found": row["found"]}))

    def test_the_chosen_side_becomes_likelier_and_the_reference_stays(self, tmp_path: Path) -> None:
        system = make_two_llm()
        given = task(system, tmp_path)
        rows = [pair.row("chosen") for pair in given.pairs]
        before = {name: float(value.sum()) for name, value in system.log_prob(rows).items()}
        assert ChosenSFT().train(given) == {}
        for name, value in system.log_prob(rows).items():
            assert float(value.sum()) > before[name] + 0.1, name
        for name, value in system.reference_log_prob(rows).items():
            assert float(value.sum()) == pytest.approx(before[name], abs=1e-3), name
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [(line["component"], line["step"]) for line in lines] == [
            ("psi1", 1),
            ("psi1", 2),
            ("psi2", 1),
            ("psi2", 2),
        ]

    def test_its_loss_is_the_mean_token_nll_of_the_completions(self, tmp_path: Path) -> None:
        """TRL's logged loss of the first update against our own likelihood, all pairs in one batch."""
        system = make_two_llm()
        given = task(system, tmp_path)
        rows = [pair.row("chosen") for pair in given.pairs]
        nll = {name: -float(value.sum()) for name, value in system.log_prob(rows).items()}
        tokens = {}
        for component, variable in (("psi1", "y"), ("psi2", "z")):
            model = system.component(component)
            assert isinstance(model, LanguageModel)
            tokens[variable] = sum(
                label != -100 for row in completions(system, component, model, rows) for label in row["labels"]
            )
        ChosenSFT().train(given)
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        first = {line["component"]: line["loss"] for line in lines if line["step"] == 1}
        assert first["psi1"] == pytest.approx(nll["y"] / tokens["y"], rel=2e-3)
        assert first["psi2"] == pytest.approx(nll["z"] / tokens["z"], rel=2e-3)


class TestDataRewards:
    def test_the_last_component_comes_first_and_the_first_learns_through_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sysdpo.peers import ddr

        system = make_two_llm()
        given = task(system, tmp_path)
        seen: list[tuple[str, list[dict[str, list[int]]]]] = []

        def moved(name: str, component: Any, rows: Any, *_: Any) -> None:
            seen.append((name, rows))
            if name == "psi2":
                perturb(component, 0.3)

        monkeypatch.setattr(ddr, "align_alone", moved)
        peer = DataRewards(temperatures=(0.5, 1.0, 1.5), prompts=3)
        spent = peer.train(given)
        assert [name for name, _ in seen] == ["psi2", "psi1"]
        assert spent == {"answers": 18.0, "judge_calls": 18.0}  # 3 prompts, 3 candidates, 2 components
        y = system.graph["y"]
        candidates = peer._candidates(given, y, given.prompts(3))
        texts = [{output["y"] for output in outputs} for outputs in candidates]
        assert any(len(each) > 1 for each in texts)
        # the answers of psi1's candidates are those of the psi2 that has moved: drawn again, they are the same
        model = system.component("psi1")
        assert isinstance(model, LanguageModel)
        for pair, outputs in zip(given.prompts(3), candidates, strict=True):
            scores = Bytes().scores([{}], [outputs])[0][0]
            best, worst = outputs[scores.index(max(scores))], outputs[scores.index(min(scores))]
            row = {
                "prompt_ids": list(model.codec.prompt_ids(pair.inputs)),
                "chosen_ids": list(model.codec.completion_ids(best["y"])),
                "rejected_ids": list(model.codec.completion_ids(worst["y"])),
            }
            assert (row in seen[1][1]) == (row["chosen_ids"] != row["rejected_ids"])

    def test_it_trains_both_and_goes_on_after_an_interruption(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sysdpo.peers import ddr

        def run(name: str) -> dict[str, torch.Tensor]:
            system = make_two_llm()
            DataRewards(temperatures=(0.5, 1.5)).train(task(system, tmp_path / name))
            return trainable_state(system)

        whole = run("whole")
        align = ddr.align_alone

        def stopped(name: str, *rest: Any) -> None:
            if name == "psi1":
                raise KeyboardInterrupt
            align(name, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(ddr, "align_alone", stopped)
            with pytest.raises(KeyboardInterrupt):
                run("stopped")
        resumed = run("stopped")
        start = trainable_state(make_two_llm())
        for name, value in whole.items():
            assert torch.allclose(resumed[name], value, atol=1e-6), name
        for component in ("psi1", "psi2"):
            assert any(not torch.equal(whole[n], start[n]) for n in whole if component in n), component


class TestGroupRelative:
    def test_advantages_by_hand(self) -> None:
        """(1, 2, 3): mean 2, sd sqrt(2/3); a group of equal rewards teaches nothing."""
        found = group_advantages(torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]))
        root = (2 / 3) ** 0.5
        assert found[0].tolist() == pytest.approx([-1 / root, 0.0, 1 / root])
        assert found[1].tolist() == [0.0, 0.0, 0.0]

    def test_the_gradient_is_that_of_the_score_function(self) -> None:
        log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        loss = group_relative_loss(log_probs, torch.tensor([[1.0, -1.0]]))
        assert loss.tolist() == [-0.5]  # -((1)(-1) + (-1)(-2)) / 2
        loss.sum().backward()
        assert log_probs.grad is not None
        assert log_probs.grad.tolist() == [[-0.5, 0.5]]

    def test_both_components_move_and_what_it_took_is_counted(self, tmp_path: Path) -> None:
        system = make_two_llm()
        start = trainable_state(system)
        spent = GroupRelative(prompts=2, samples=3).train(task(system, tmp_path))
        assert spent == {"answers": 12.0, "judge_calls": 12.0}  # 2 updates, 2 prompts, 3 answers
        moved = trainable_state(system)
        for component in ("psi1", "psi2"):
            assert any(not torch.equal(moved[n], start[n]) for n in start if component in n), component

    def test_prompts_at_a_time_change_nothing(self, tmp_path: Path) -> None:
        lines = {}
        for size in (1, 4):
            given = task(make_two_llm(), tmp_path / str(size))
            given = replace(given, settings=replace(given.settings, micro_batch_size=size))
            GroupRelative(prompts=4, samples=3).train(given)
            lines[size] = read_jsonl(given.folder / "metrics.jsonl")
        for one, all_ in zip(lines[1], lines[4], strict=True):
            assert one["reward"] == all_["reward"]
            assert one["loss"] == pytest.approx(all_["loss"], abs=1e-5)
            assert one["grad_norm"] == pytest.approx(all_["grad_norm"], rel=1e-4)
            assert one["grad_norm"] > 0


class TestWithoutReference:
    def test_the_margin_is_the_joint_difference_and_its_gradient_each_components_own(self, tmp_path: Path) -> None:
        system = make_two_llm()
        pairs = make_pairs_for(system, 3)
        perturb(system, 0.1)
        compared = WithoutReference().compare(system, pairs, [0, 1, 2])
        joint = {side: sum(system.log_prob([p.row(side) for p in pairs]).values()) for side in ("chosen", "rejected")}
        expected = joint["chosen"] - joint["rejected"]
        assert torch.allclose(compared.margin, expected, atol=1e-4)  # type: ignore[arg-type]
        assert float(compared.margin.abs().max()) > 0.1
        settings = TrainingSettings(steps=1, batch_size=3, micro_batch_size=3)
        Trainer(make_two_llm(), WithoutReference(), pairs, (), settings, tmp_path).run()

    def test_a_bound_has_no_likelihood_without_one(self) -> None:
        with pytest.raises(SettingError, match=r"objective=no_reference: variable 'z' has only a bound"):
            WithoutReference().check(make_llm_diffusion())


def test_peers_refuse_what_writes_no_text(tmp_path: Path) -> None:
    system = make_llm_diffusion()
    with pytest.raises(SettingError, match="trainer=ddr: component 'diffusion' is no language model"):
        DataRewards().train(Task(system, [], Bytes(), SETTINGS, tmp_path, 2))


def test_of_n_answers_the_judge_picks_one_and_the_baseline_stays_one_a_row() -> None:
    class Longer:
        name = "longer"

        def preferences(
            self, rows: Sequence[Mapping[str, Any]], references: Sequence[str], outputs: Sequence[str]
        ) -> list[float]:
            return [1.5 + ((len(o) > len(r)) - (len(o) < len(r))) / 2 for r, o in zip(references, outputs, strict=True)]

    rows = [{"x": name, "chosen": {"z": "four"}} for name in "ab" for _ in range(3)]
    outputs = [{"x": "", "z": z} for z in ("1", "12345", "123", "1", "1", "12")]
    metrics, records = WinRates(Longer(), "z", best_of=3).measure(rows, outputs, [{"z": "12"}, {"z": "12"}])
    assert [record["z"] for record in records] == ["12345", "12"]
    assert metrics["wr_chosen"]["value"] == 50.0  # longer than "four", shorter
    assert metrics["wr_prompted"]["value"] == 75.0  # longer, equal
    assert metrics["wr_prompted"]["n"] == 2


def test_prompts_are_told_apart_by_their_inputs(tmp_path: Path) -> None:
    system = make_two_llm()
    given = task(system, tmp_path)
    twice = Task(system, [*given.pairs, *given.pairs], Bytes(), SETTINGS, tmp_path, 2)
    assert [p.index for p in twice.prompts()] == [0, 1, 2, 3]
    assert [p.index for p in twice.prompts(2)] == [0, 1]
    assert isinstance(twice.pairs[0], Pair)


class TestEndpoint:
    """The components over HTTP, as DSPy's search asks them."""

    @staticmethod
    def ask(url: str, model: str, text: str) -> str:
        content = {"model": model, "messages": [{"role": "user", "content": text}]}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(content).encode())
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer: str = json.load(reply)["choices"][0]["message"]["content"]
            return answer

    def test_what_comes_together_is_one_batch_and_gets_the_answers_of_one_after_another(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make_two_llm().component("psi1")
        assert isinstance(model, LanguageModel)
        batches: list[int] = []
        draw = model.draw_ids

        def drawn(prompts: Any, *rest: Any) -> Any:
            batches.append(len(prompts))
            return draw(prompts, *rest)

        monkeypatch.setattr(model, "draw_ids", drawn)
        monkeypatch.setattr("sysdpo.peers.endpoint.GATHER", 0.3)
        texts = [f"question {i} " * (i + 1) for i in range(6)]
        with Endpoint({"psi1": model}, score=len).serving() as url:
            serial = [self.ask(url, "psi1", text) for text in texts]
        assert batches == [1] * 6
        with Endpoint({"psi1": model}, score=len).serving() as url, ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda text: self.ask(url, "psi1", text), texts))
        assert batches[6:] == [6]
        assert together == serial
        assert len(set(serial)) > 1

    def test_what_it_cannot_answer_is_refused_and_the_rest_goes_on(self) -> None:
        model = make_two_llm().component("psi1")
        assert isinstance(model, LanguageModel)
        with Endpoint({"psi1": model}, score=len).serving() as url:
            with pytest.raises(urllib.error.HTTPError, match="400"):
                self.ask(url, "psi9", "hello")
            with pytest.raises(urllib.error.HTTPError, match="400"):
                self.ask(url, "psi1", "hello " * 10_000)
            assert isinstance(self.ask(url, "psi1", "hello"), str)


SEARCH = """#!{python}
import json, sys, urllib.request
task = json.load(open(sys.argv[2]))
def post(path, content):
    with urllib.request.urlopen(urllib.request.Request(task["url"] + path, json.dumps(content).encode())) as reply:
        return json.load(reply)
row, values = task["rows"][0], {{}}
for variable in task["variables"]:
    user = variable["template"].format(**{{a: {{**row, **values}}[p] for a, p in variable["parents"].items()}})
    asked = {{"model": variable["component"], "messages": [{{"role": "user", "content": user}}]}}
    values[variable["name"]] = post("/v1/chat/completions", asked)["choices"][0]["message"]["content"]
post("/score", {{"row": 0, "values": values}})
examples = {{v["name"]: [{{"user": "Q", "assistant": "A"}}] * task["demonstrations"] for v in task["variables"]}}
json.dump({{"examples": examples, "scores": []}}, open(sys.argv[3], "w"))
"""
"""In DSPy's place, which has an environment of its own: asks and scores one row, and finds the same for everyone."""


class TestFewShot:
    def test_what_is_found_becomes_the_prompts_examples_and_is_not_searched_again(self, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text(SEARCH.format(python=sys.executable))
        python.chmod(0o755)
        folder = tmp_path / "run"
        peer = FewShot(python=str(python), demonstrations=2)
        for _ in range(2):
            system = make_two_llm()
            assert peer.train(task(system, folder)) == {"answers": 1.0, "drafts": 1.0, "judge_calls": 1.0}
            for name in ("psi1", "psi2"):
                model = system.component(name)
                assert isinstance(model, LanguageModel)
                assert model.codec.prompt.examples == (("Q", "A"), ("Q", "A"))
            python.write_text("#!/bin/false")  # the second time, nobody may be asked
        with pytest.raises(SettingError, match="the search failed"):
            replace(peer, demonstrations=1).train(task(make_two_llm(), folder))  # another search

    def test_without_dspy_it_says_how_to_get_it(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="make setup-dspy"):
            FewShot(python=str(tmp_path / "nobody")).train(task(make_two_llm(), tmp_path / "run"))
