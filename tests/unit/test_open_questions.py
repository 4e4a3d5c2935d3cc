"""What the open questions are asked with: tools that mislead, loops that training ignores, what a sweep says."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sysdpo.components.tools.corruption import Corruption
from sysdpo.errors import SettingError
from sysdpo.experiment.build import as_evaluated, build_system
from sysdpo.sampling.diversity import distinct_ngrams
from sysdpo.training.objectives import Sampling
from tests.composed import compose_system
from tests.systems import make_pairs_for, make_two_llm

WORDS = ["lamp", "drum", "boot"]


class TestCorruption:
    @pytest.mark.parametrize(("rate", "least", "most"), [(0.0, 0, 0), (0.3, 255, 345), (1.0, 1000, 1000)])
    def test_the_share_of_replaced_texts(self, rate: float, least: int, most: int) -> None:
        """Of 1,000 texts; at 0.3, within 3 standard deviations of 300 (14.5 each)."""
        tool = Corruption(WORDS, rate)
        asked = [{"text": f"draft {i}", "x": "q"} for i in range(1000)]
        given = [values[0] for values in tool.sample(asked, 1, [0] * 1000)]
        replaced = [text for text, row in zip(given, asked, strict=True) if text != row["text"]]
        assert least <= len(replaced) <= most
        assert all(set(text.split()) <= set(WORDS) and len(text.split()) == 2 for text in replaced)

    def test_it_is_a_function_of_its_parents(self) -> None:
        tool = Corruption(WORDS, 0.5)
        rows = [{"text": "a b", "x": f"{i}"} for i in range(50)]
        first = tool.sample(rows, 1, list(range(50)))
        assert tool.sample(rows, 1, list(range(50, 100))) == first
        assert len({values[0] for values in first}) > 1  # other parents, another decision

    def test_wrong_settings(self) -> None:
        with pytest.raises(SettingError, match=r"rate=1\.5"):
            Corruption(WORDS, 1.5)
        with pytest.raises(SettingError, match="needs words"):
            Corruption([], 0.5)


def test_distinct_ngrams_by_hand() -> None:
    """`a b a` and `a b`: bigrams ab, ba, ab: two of three differ."""
    assert distinct_ngrams(["a b a", "a b"]) == pytest.approx(2 / 3)
    assert distinct_ngrams(["a b", "c d"]) == 1.0
    assert distinct_ngrams(["a b a b"], n=1) == 0.5
    assert distinct_ngrams(["a", ""]) == 1.0


def test_the_samples_of_a_pair_are_measured() -> None:
    system = make_two_llm()
    pairs = make_pairs_for(system, 2)
    objective = Sampling(k=3)
    drawn = objective.draw(system, pairs, [1, 2])
    compared = objective.compare(system, pairs, [1, 2])
    expected = [distinct_ngrams([sample["y"] for sample in samples]) for samples in drawn]
    assert compared.sampling["distinct_bigrams"].tolist() == pytest.approx(expected)


class TestEvaluationSystem:
    def test_a_loop_that_training_ignores(self) -> None:
        config = compose_system("two_llm_loop", ["system.unroll=null"])
        config.evaluation_system = OmegaConf.create({"unroll": {"loop": {"y": "z"}, "steps": 2}})
        system = build_system(config)
        shown = as_evaluated(config, system)
        assert [v.name for v in system.graph.generated] == ["y", "z"]
        assert [v.name for v in shown.graph.generated] == ["y", "z_1", "z"]
        assert shown.component("psi2") is system.component("psi2")
        assert dict(shown.graph["z"].parents)["y"] == "z_1"

    def test_a_tool_with_other_settings(self) -> None:
        config = compose_system("two_llm_misled")
        config.evaluation_system = OmegaConf.create({"components": {"corruption": {"rate": 1.0}}})
        system = build_system(config)
        shown = as_evaluated(config, system)
        texts = [s.generate([{"x": "a question"}], 3)[0] for s in (system, shown)]
        assert texts[0]["y"] == texts[1]["y"]
        assert texts[0]["handed_on"] == texts[0]["y"]
        assert set(texts[1]["handed_on"].split()) <= {"lamp", "drum", "boot", "tent", "pizza", "rose"}

    def test_models_stay_as_they_are(self) -> None:
        config = compose_system("two_llm_misled")
        config.evaluation_system = OmegaConf.create({"components": {"psi1": {"max_new_tokens": 3}}})
        with pytest.raises(SettingError, match=r"evaluation_system\.components\.psi1"):
            as_evaluated(config, build_system(config))

    def test_nothing_else_is_the_same_system(self) -> None:
        config = compose_system("two_llm_misled")
        system = build_system(config)
        assert as_evaluated(config, system) is system


def test_a_sweep_says_what_its_jobs_took(tmp_path: Path) -> None:
    import json

    from sysdpo.reporting.sweep_summary import as_csv
    from sysdpo.reporting.sweeps import Sweep, SweepJob
    from sysdpo.runs.folder import RunFolder

    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"method": "m", "seed": 0, "sampling/distinct_bigrams": 0.75}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "seconds": 1.25}\n{"step": 2, "seconds": 0.5}\n')
    (folder / "budget.json").write_text('{"cpu_seconds": 3.5}')
    sweep = Sweep("s", "e", "mini", {}, {}, [SweepJob("one", {}, RunFolder(folder), None)])
    header, line = [row.split(",") for row in as_csv(sweep).splitlines()]
    found = dict(zip(header, line, strict=True))
    assert (found["seconds"], found["cpu_seconds"], found["sampling/distinct_bigrams"]) == ("1.75", "3.5", "0.75")
