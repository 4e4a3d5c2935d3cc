"""What a benchmark is made of: made-up rows, tokens that stay as many, readings of memory, and what is refused."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sysdpo.benchmark.readings import Memory
from sysdpo.benchmark.table import benchmark
from sysdpo.cli.schema.check import check_config
from sysdpo.components.text.codec import byte_tokenizer
from sysdpo.errors import SettingError
from sysdpo.paths import CONF
from sysdpo.planning.workload import Workload
from sysdpo.runs.resident import FORGET
from tests.composed import SYSTEMS, build


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("benchmark", ["scale=smoke", "device=cpu", "max_draft_tokens=${max_new_tokens}", *overrides])


@pytest.mark.parametrize("vocabulary", [128_256, 151_936])
def test_what_a_large_random_model_samples_has_as_many_tokens_when_it_is_read_again(vocabulary: int) -> None:
    tokenizer = byte_tokenizer(vocabulary)
    ids = torch.randint(300, vocabulary, (2_000,), generator=torch.Generator().manual_seed(0)).tolist()
    text = tokenizer.decode(ids)
    assert len(tokenizer(text)["input_ids"]) == len(text) == 2_000
    assert len(set(text)) > 30  # texts differ
    turn = "<|im_start|>user\nWhat is 2 + 2?  a é 山<|im_end|>\n"
    assert tokenizer.decode(tokenizer(turn)["input_ids"]) == turn


@pytest.mark.parametrize("name", SYSTEMS)
def test_rows_are_made_up_for_every_system(name: str) -> None:
    """All of them can be scored, none twice the same; texts have the tokens asked for."""
    system = build(name)
    made = Workload(system, prompt=30, text=9, elements=3)
    pairs = made.pairs(4)
    rows = [pair.row(side) for pair in pairs for side in ("chosen", "rejected")]
    system.check_rows(rows)
    finals = [repr([row[v.name] for v in system.graph.finals]) for row in rows]
    assert len(set(finals)) == len({repr(pair.inputs) for pair in pairs}) * 2 == 8
    assert {len(value) for pair in pairs for value in pair.inputs.values()} == {30}  # one token a byte


@pytest.mark.skipif(not FORGET.exists(), reason="this system does not tell")
def test_the_readings_show_what_was_given_back() -> None:
    memory = Memory(on_gpu=False)
    size = 200 * 2**20
    before = memory.now()
    assert before is not None
    held = torch.ones(size // 4)
    del held
    memory_at_peak = memory.peak()
    assert memory_at_peak is not None
    assert 0.95 * size < memory_at_peak - before < 1.2 * size
    memory.reset()
    peak = memory.peak()
    assert peak is not None
    assert peak - before < 0.2 * size


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=separate_dpo"], "trainer=separate"),
        (["method=prompted"], "no component has trainable weights"),
        (["plan.known_tokens.table2.longest_prompt=5000"], r"plan\.tokens\.longest_prompt=5000: row 0: a prompt of 5"),
    ],
)
def test_what_cannot_be_measured_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        benchmark(composed(*overrides))


def test_a_wrong_size_is_refused_as_every_setting_is() -> None:
    with pytest.raises(SettingError, match=r"benchmark\.updates=0: must be at least 1"):
        check_config(composed("benchmark.updates=0"))
