"""A rehearsal of the paper scale: what it changes, what stands in, what it asks of a report."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.alpaca_eval import AlpacaEvalJudge
from sysdpo.evaluation.judges.endpoint import ChatEndpoint
from sysdpo.evaluation.judges.reward_model import RewardModelJudge
from sysdpo.paths import CONF
from sysdpo.rehearsal.run import KEY_NAME, _clear, _text, missing
from sysdpo.rehearsal.stand_ins import KEY, judge_server, make_stand_ins
from sysdpo.tasks.progression.scorers.transient import build_transient_resnet50

REHEARSALS = ("table1", "table1_sd35", "table2", "moa")
PLACES = ("path", "folder", "base_url", "cache_dir")
"""What says where something lies."""
ALLOWED = {"weights": "random", "parser": "even", "assume_yes": True, "model@diffusion": "sd35_medium"}


def content_of(rehearsal: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        content: Any = OmegaConf.to_container(compose("rehearse", [f"rehearsal={rehearsal}"]), resolve=True)
    return dict(content)


@pytest.mark.parametrize("rehearsal", REHEARSALS)
def test_only_sizes_counts_and_places_are_changed(rehearsal: str) -> None:
    """Every override is a number or a list of numbers, except for what random weights and no network ask for."""
    for key, value in content_of(rehearsal)["overrides"].items():
        last = key.split(".")[-1]
        if last in ALLOWED:
            assert value == ALLOWED[last]
        elif last == "attributes":
            assert len(value) < 40
        elif last not in PLACES:
            sizes = json.dumps(value)
            assert not any(isinstance(leaf, str | bool) or leaf is None for leaf in leaves(value)), f"{key}={sizes}"


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("rehearsal", REHEARSALS)
def test_the_paper_scale_composes_with_them(rehearsal: str) -> None:
    content = content_of(rehearsal)
    small = [f"{key}={_text(value)}" for key, value in content["overrides"].items()]
    OverridesParser.create().parse_overrides(small)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"experiment={content['experiment']}", "scale=paper", *small])
    assert config.training.steps < 10
    models = [c.model for c in config.system.components.values() if "model" in c]
    assert {model.weights for model in models} == {"random"}
    assert all("/" in model.pretrained for model in models)  # the paper's own


def test_the_stand_ins_are_read_by_what_reads_the_real_ones(tmp_path: Path) -> None:
    make_stand_ins(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "orca_pairs.jsonl").read_text().splitlines()]
    assert {tuple(row) for row in rows} == {("system", "question", "chosen", "rejected")}
    assert any(row["system"] for row in rows)
    assert not all(row["system"] for row in rows)
    assert len(build_transient_resnet50(str(tmp_path / "transient_resnet50")).attributes) == 40
    judge = RewardModelJudge(str(tmp_path / "reward_model"), device="cpu")
    [same, other] = judge.preferences([{"x": "q"}] * 2, ["a", "a"], ["a", "bcd"])
    assert same == 1.5
    assert other != 1.5


def test_the_server_is_a_judge_that_asks_for_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with judge_server() as url:
        judge = AlpacaEvalJudge(ChatEndpoint(url, KEY_NAME), "any", tmp_path, 0, 0)
        monkeypatch.setenv(KEY_NAME, KEY)
        assert judge.preferences([{"x": "q"}] * 2, ["a", "long"], ["long", "a"]) == pytest.approx([1.8, 1.2])
        monkeypatch.setenv(KEY_NAME, "another")
        with pytest.raises(SettingError, match="401"):
            judge.preferences([{"x": "other"}], ["a"], ["bc"])


def test_what_a_report_lacks_is_said(tmp_path: Path) -> None:
    assert missing(tmp_path, ["f"]) == ["there is no report"]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "f.png").touch()
    (tmp_path / "index.html").touch()
    rows = [{"method": "a", "seeds": [0]}, {"method": "b", "seeds": []}]
    (tmp_path / "table.json").write_text(json.dumps({"rows": rows}))
    assert missing(tmp_path, ["f", "g"]) == ["row b has no finished run", "g was not drawn"]


def test_nothing_but_an_earlier_rehearsal_is_removed(tmp_path: Path) -> None:
    results = tmp_path / "outputs" / "table2"
    results.mkdir(parents=True)
    with pytest.raises(SettingError, match="is of no rehearsal"):
        _clear(results)
    assert results.exists()
    own = tmp_path / "rehearsal" / "table2"
    _clear(own)
    own.mkdir()
    _clear(own)
    assert not own.exists()
