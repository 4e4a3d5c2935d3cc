"""Wrong values for every key there is are one line, before anything is imported or loaded."""

import copy
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sysdpo.cli.overrides import prepared
from sysdpo.cli.schema.check import check_config, check_settings
from sysdpo.cli.schema.effect import READ, check_effect
from sysdpo.cli.schema.kinds import Kind, form_of, kind, refusal
from sysdpo.cli.schema.signatures import signature
from sysdpo.errors import SettingError
from sysdpo.graph import GraphError
from sysdpo.limits import Limits
from sysdpo.paths import CONF

CONFIGS = (
    ("experiment=table2",),
    ("experiment=table1",),
    ("experiment=moa",),
    ("method=sysdpo_direct", "dataset=own_samples"),
    ("judge=alpaca_eval", "logger=wandb", "dataset=jsonl"),
    ("judge=reward_model", "sampler=contrastive", "system=refinement", "logger=jsonl"),
    ("system=routing", "sampler=monte_carlo"),
    ("system=retrieval_augmented",),
)
"""Together they hold every kind of part that ships."""

FOR_REPORTS = ("paper", "figures", "contrasts", "metric_titles", "rows", "metrics")


def composed(*overrides: str, name: str = "config") -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, ["scale=smoke", *overrides])


@cache
def content(overrides: tuple[str, ...]) -> Any:
    return OmegaConf.to_container(composed(*overrides), resolve=True)


@cache
def settings_of(overrides: tuple[str, ...]) -> list[tuple[tuple[Any, ...], Any]]:
    """Every key, at whatever depth, at the place where a user sets it: not where ${…} copies it to."""
    raw = OmegaConf.to_container(composed(*overrides), resolve=False)

    def walk(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(each, str) and "${" in each:
                continue
            if key in FREE:
                continue
            yield (*place, key), each
            if isinstance(each, dict | list):
                yield from walk(each, (*place, key))

    return [(place, value) for place, value in walk(raw, ()) if place[0] not in FOR_REPORTS]


NOT_A_COUNT = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).filter(lambda x: not float(x).is_integer() or math.isinf(x)),
    st.integers(max_value=-1),
    st.integers(min_value=99_999_999_999),
    st.booleans(),
)
LISTS = st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=3)
MAPPINGS = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(), min_size=1, max_size=2)
WORDS = st.sampled_from(["no", "off", "yes", "on", "many", "1e-3 ", "", "none", "\udcff"])
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])

WRONG: dict[str, st.SearchStrategy[Any]] = {
    "flag": WORDS | st.integers() | NOT_FINITE | LISTS | MAPPINGS | st.none(),
    "whole": WORDS | NOT_A_COUNT | LISTS | MAPPINGS,
    "number": WORDS | NOT_FINITE | LISTS | MAPPINGS | st.booleans(),
    "text": st.integers() | st.booleans() | st.floats() | MAPPINGS | st.just("\ud800"),
    "null": NOT_FINITE | st.just("\ud800") | st.just(["\udcff"]),
    "list": WORDS | st.integers() | st.booleans() | MAPPINGS,
    "mapping": WORDS | st.integers() | st.booleans() | LISTS,
}
"""By what a key holds at smoke, what it can never be."""

NUMBER_TOO = (
    *("lora_alpha", "min_gap", "evaluation", "validation", "temperature", "max_artifact_mb", "characters_per_token"),
    *("timeout_s", "first_wait_s", "longest_wait_s", "longest_retry_after_s", "dollars_per_million_completion_tokens"),
)
"""Numbers that are whole at smoke by chance."""

ONE_OR_A_LIST = ("layers_per_block", "block_out_channels", "cross_attention_dim", "attention_head_dim")

FREE = ("styles", "with_answers", "questions", "on_error")
"""A system's own keys, checked where they are referred to, and what a tool says of an error: anything."""


@given(st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_wrong_value_of_any_key_is_taken(data: st.DataObject) -> None:
    overrides = data.draw(st.sampled_from(CONFIGS))
    place, value = data.draw(st.sampled_from(settings_of(overrides)))
    wrong = data.draw(WRONG[str(form_of(value))])
    if form_of(value) == "whole" and place[-1] in NUMBER_TOO and isinstance(wrong, float) and wrong > 0:
        wrong = -wrong
    if place[-1] in ONE_OR_A_LIST and isinstance(wrong, int | list):
        wrong = "many"
    if place[-1] == "user" and isinstance(wrong, str):  # one template, or a list of them
        wrong = {}
    changed = copy.deepcopy(content(overrides))
    node = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = wrong
    with pytest.raises((SettingError, GraphError)) as error:
        check_settings(changed)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 600
    line.encode("utf-8")  # can be printed


@pytest.mark.parametrize("overrides", CONFIGS, ids=",".join)
def test_what_ships_is_right_and_every_key_at_the_top_is_known(overrides: tuple[str, ...]) -> None:
    config = composed(*overrides)
    check_config(config)
    parts = {name for name in config if name not in READ}
    assert parts <= {
        *("llm", "sampler", "judge", "scorer", "bound", "prompt", "parser", "captioner", "diffusion"),
        *("device", "manner", "max_new_tokens", "max_draft_tokens", "best_of", "budget"),
    }, "a new key at the top: commands that read it by name list it in sysdpo.cli.schema.effect.READ"


def test_a_component_s_name_is_refused_with_the_config() -> None:
    content: Any = OmegaConf.to_container(composed("experiment=table2"), resolve=True)
    content["system"]["components"]["values"] = content["system"]["components"].pop("psi1")
    content["system"]["variables"]["y"]["component"] = "values"
    content["train"] = None
    with pytest.raises(SettingError, match=r"'values' cannot name a component .*; write 'values_model'"):
        check_settings(content)


def test_nothing_is_imported_for_it() -> None:
    code = (
        "import sys\nfrom tests.unit.test_settings import CONFIGS, composed\n"
        "from sysdpo.cli.schema.check import check_config\n"
        "for overrides in CONFIGS: check_config(composed(*overrides))\n"
        "print([m for m in ('torch', 'transformers', 'diffusers', 'peft') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONF.parent, check=True)
    assert run.stdout.strip() == "[]"


def test_annotations_are_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part of anybody's, which would fail if it were imported."""
    (tmp_path / "their_parts.py").write_text(
        "raise RuntimeError('imported')\n"
        "from typing import Literal, Optional\nfrom dataclasses import dataclass\n"
        "from collections.abc import Sequence\n"
        "Way = Literal['up', 'down']\n"
        "class A:\n    def __init__(self, n: int, x: 'float | None' = None, *, way: Way = 'up', free=1): ...\n"
        "class B(A):\n    pass\n"
        "@dataclass\nclass C:\n    words: Sequence[str]\n    flag: bool = False\n"
        "@dataclass\nclass D(C):\n    more: Optional[int] = None\n"
        "def f(a: str, **rest): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    signature.cache_clear()
    a, b = signature("their_parts.A"), signature("their_parts.B")
    assert a is not None
    assert a == b
    assert a.keys == {
        "n": kind("whole"),
        "x": kind("number", "null"),
        "way": Kind(frozenset({"text"}), choices=("up", "down")),
        "free": Kind(),
    }
    d = signature("their_parts.D")
    assert d is not None
    assert list(d.keys) == ["words", "flag", "more"]
    f = signature("their_parts.f")
    assert f is not None
    assert f.rest
    assert signature("their_parts.nothing") is None
    assert signature("no_such_package.A") is None


@pytest.mark.parametrize(
    ("what", "value", "expected"),
    [
        (kind("whole", limits=Limits(1, 5)), 0, ("", "must be at least 1")),
        (kind("whole", limits=Limits(1, 5)), 6, ("", "must be at most 5")),
        (kind("number", limits=Limits(above=0)), 0, ("", "must be greater than 0")),
        (kind("number", limits=Limits(below=1)), 1.0, ("", "must be less than 1")),
        (kind("number"), 3, None),
        (kind("whole"), 3.0, ("", "must be a whole number")),
        (kind("whole"), True, ("", "must be a whole number")),
        (kind("flag"), "no", ("", "must be true or false")),
        (kind("text"), 5, ("", "must be text; as text it is written '\"5\"'")),
        (kind("list", item=kind("text")), ["a", 2], ("[1]", "must be text; as text it is written '\"2\"'")),
        (kind("mapping", item=kind("number")), {"a": "b"}, (".a", "must be a number")),
        (Kind(), {"a": [math.nan]}, (".a[0]", "must be a finite number")),
    ],
)
def test_refusals(what: Kind, value: Any, expected: Any) -> None:
    assert refusal(what, value) == expected


def test_an_override_counts_if_any_row_uses_it() -> None:
    direct, sampling = composed("method=sysdpo_direct"), composed("method=sysdpo_sampling")
    check_effect(["sampler.k=4", "llm.lora.r=2", "beta=1", "scale=smoke", "hydra.verbose=true"], [direct, sampling])
    with pytest.raises(SettingError, match=r"^sampler\.k=4: has no effect, .*method=sysdpo_direct.*objective=sampling"):
        check_effect(["sampler.k=4"], [direct])
    with pytest.raises(SettingError, match=r"^judge=none: has no effect"):
        check_effect(["judge=none"], [composed("experiment=table1")])
    check_effect(["captioner.lora.r=2", "bound.draws=2", "max_new_tokens=3"], [composed("experiment=table1")])


@pytest.mark.parametrize(
    "path", ["/a=b", "/a [b]", "/tmp/ü/ß", "/日本", "/a(b)", "/a,b", "/it's", "/a{b}", "/a#b", "/a: b", "[x]", "/a\\"]
)
def test_a_path_is_read_as_it_is_written(path: str) -> None:
    (argument,) = prepared([f"dataset.path={path}"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("config", ["dataset=jsonl", argument]).dataset.path == path


def test_the_command_line_before_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert prepared(["-m", "outputs=~/x", "beta=1,2", "dataset.path=a,b", "train=[psi1]", "llm.pretrained=null"]) == [
        *("-m", "outputs=/home/someone/x", "beta=1,2", "dataset.path=a,b", "train=[psi1]", "llm.pretrained=null")
    ]
    assert prepared(["--config-dir", "a=[b", "dataset.limit=3"]) == ["--config-dir", "a=[b", "dataset.limit=3"]
    with pytest.raises(
        SettingError, match=r"^logger\.project=a=b: Hydra cannot read .*: 'logger\.project='\\''a=b'\\'''"
    ):
        prepared(["logger.project=a=b"])
    with pytest.raises(SettingError, match="is not UTF-8"):
        prepared(["outputs=\udcff"])


def test_the_long_table_lies_beside_the_laptops() -> None:
    """Its data are the laptop's, and nothing but the number of updates and the place differs."""
    given = ["experiment=table2", "scale=laptop"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        laptop, long = (
            OmegaConf.to_container(compose("config", given + more), resolve=True)
            for more in ([], ["setting=table2_long"])
        )
    assert isinstance(laptop, dict)
    assert isinstance(long, dict)
    assert (laptop["training"].pop("steps"), long["training"].pop("steps")) == (16, 64)
    assert long.pop("run_folder") == "outputs/table2/long/sysdpo_sampling/seed=0"
    assert laptop.pop("run_folder") == "outputs/table2/laptop/sysdpo_sampling/seed=0"
    assert laptop["data_folder"] == long["data_folder"] == "outputs/table2/laptop/data"
    differing = {name for name in laptop if laptop[name] != long[name]}
    assert differing == {"table_folder", "study", "logger"}  # which is told of both
