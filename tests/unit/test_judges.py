"""The three judges without a network: what they ask, what they make of scores, what they refuse."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tokenizers import pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Tokenizer,
)

from sysdpo import processes
from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.alpaca_eval import AlpacaEvalJudge
from sysdpo.evaluation.judges.base import Judge
from sysdpo.evaluation.judges.cache import AnnotationCache
from sysdpo.evaluation.judges.endpoint import ChatEndpoint, _retry_after
from sysdpo.evaluation.judges.reward_model import RewardModelJudge
from sysdpo.evaluation.measures import WinRates
from sysdpo.evaluation.win_rate import is_swapped
from sysdpo.tasks.verifiable import judge as oracle
from sysdpo.tasks.verifiable.judge import OracleJudge

CONF = Path(__file__).parents[2] / "conf" / "judge"


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- oracle ---


def test_oracle_judge_is_a_sigmoid_of_the_score_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "score", lambda rule, answer: json.loads(rule)[answer])
    rule = json.dumps({"good": 1.0, "fair": 0.75, "bad": 0.0})
    rows = [{"x": "…", "oracle": rule}] * 4
    judge: Judge = OracleJudge(temperature=0.5)
    assert judge.preferences(rows, ["bad", "good", "fair", "good"], ["good", "bad", "fair", "fair"]) == [
        pytest.approx(1 + sigma(2)),
        pytest.approx(2 - sigma(2)),
        1.5,  # exactly
        pytest.approx(1 + sigma(-0.5)),
    ]


def test_oracle_judge_never_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "score", lambda rule, answer: float(answer))
    rows = [{"oracle": "{}"}] * 2
    assert OracleJudge(temperature=1e-6).preferences(rows, ["0", "1"], ["1", "0"]) == [2.0, 1.0]


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature: float) -> None:
    with pytest.raises(SettingError, match="temperature"):
        OracleJudge(temperature)
    with pytest.raises(SettingError, match="temperature"):
        RewardModelJudge("…", temperature)


def test_rows_that_lack_what_the_judge_needs_are_refused_by_number() -> None:
    with pytest.raises(SettingError, match="row 1 has no text in column 'oracle'"):
        OracleJudge(1.0).preferences([{"oracle": "{}"}, {"x": "a"}], ["", ""], ["", ""])
    with pytest.raises(SettingError, match="2 rows, 1 references and 2 outputs"):
        OracleJudge(1.0).preferences([{"oracle": "{}"}] * 2, [""], ["", ""])


# --- AlpacaEval: requests, estimate, confirmation, cache ---


def alpaca_eval_judge(tmp_path: Path, **settings: Any) -> AlpacaEvalJudge:
    endpoint = ChatEndpoint("http://127.0.0.1:9/v1", api_key_env=None)  # the discard port: nobody answers
    prices = {"dollars_per_million_prompt_tokens": 2.0, "dollars_per_million_completion_tokens": 8.0}
    return AlpacaEvalJudge(endpoint, "some-model", tmp_path / "cache", **{**prices, **settings})


def instruction_with(swapped: bool) -> str:
    return next(text for text in (f"Task {i}" for i in range(100)) if is_swapped(text) == swapped)


@pytest.mark.parametrize("swapped", [False, True])
def test_m_is_the_reference_unless_the_coin_swaps_them(tmp_path: Path, swapped: bool) -> None:
    row = {"x": instruction_with(swapped)}
    [request] = alpaca_eval_judge(tmp_path)._requests([row], ["the reference"], ['an "output"\n}'])
    assert request is not None
    system, user = request.pop("messages")
    assert request == {
        "model": "some-model",
        "max_tokens": 1,
        "temperature": 1.0,
        "logprobs": True,
        "top_logprobs": 5,
    }
    assert (system["role"], user["role"]) == ("system", "user")
    material, question = user["content"].rsplit("\n\n", 1)
    answers = ["the reference", 'an "output"\n}']
    first, second = answers[::-1] if swapped else answers
    assert json.loads(material) == {"instruction": row["x"], "answers": {"m": first, "M": second}}
    assert "m or M" in question


def test_the_estimate_counts_what_is_asked_once_and_nothing_else(tmp_path: Path) -> None:
    judge = alpaca_eval_judge(tmp_path)
    rows = [{"x": "a"}, {"x": "b"}, {"x": "a"}, {"x": "c"}]
    references, outputs = ["r", "r", "r", "same"], ["o", "o", "o", "same"]
    requests = judge._requests(rows, references, outputs)
    assert requests[3] is None  # identical answers need no judge
    characters = sum(len(m["content"]) for r in requests[:2] if r for m in r["messages"])

    cost = judge.estimate(rows, references, outputs)
    assert cost.calls == cost.completion_tokens == 2  # the third row repeats the first
    assert cost.prompt_tokens == round(characters / 4)
    assert cost.dollars == pytest.approx((cost.prompt_tokens * 2.0 + 2 * 8.0) / 1e6)

    assert requests[0] is not None
    judge.cache.put(judge._identity(requests[0]), {"top_logprobs": {"m": -0.1}})
    assert judge.estimate(rows, references, outputs).calls == 1


def test_spending_without_a_terminal_needs_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SettingError, match=r"judge\.assume_yes: .* set it to true") as refusal:
        alpaca_eval_judge(tmp_path).preferences([{"x": "a"}], ["r"], ["o"])
    assert "1 times" in str(refusal.value)
    assert "$" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("answer", ["", "n", "no", "yesterday"])
def test_spending_is_declined_by_anything_but_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    with pytest.raises(SettingError, match="nothing was spent"):
        alpaca_eval_judge(tmp_path).preferences([{"x": "a"}], ["r"], ["o"])


def test_identical_answers_are_judged_without_a_server(tmp_path: Path) -> None:
    assert alpaca_eval_judge(tmp_path).preferences([{"x": "a"}], ["same"], ["same"]) == [1.5]


def test_cache_keys_follow_content_and_survive_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = AnnotationCache(tmp_path)
    request = {"model": "a", "messages": [{"role": "user", "content": "é \ud83d"}]}  # a lone surrogate too
    assert cache.key(request) == cache.key(dict(reversed(request.items())))
    assert cache.key(request) != cache.key({**request, "model": "b"})
    assert cache.get(cache.key(request)) is None
    cache.put(request, {"top_logprobs": {"m": -0.1234567890123456}})
    assert cache.get(cache.key(request)) == {"top_logprobs": {"m": -0.1234567890123456}}

    [file] = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:20])
    assert cache.get(cache.key(request)) is None
    assert "damaged" in caplog.text


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = AnnotationCache(tmp_path)
    with pytest.raises(TypeError):
        cache.put({"model": "a"}, object())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(SettingError, match=r"judge\.cache_dir"):
        alpaca_eval_judge(tmp_path, assume_yes=True).preferences([{"x": "a"}], ["r"], ["o"])


# --- endpoint: settings, key, Retry-After ---


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"base_url": "https://user:sk-secret@host/v1"}, "base_url"),
        ({"base_url": "https://host/v1?key=sk-secret"}, "base_url"),
        ({"base_url": "host/v1"}, "base_url"),
        ({"base_url": "http://host:port/v1"}, "base_url"),
        ({"api_key_env": "sk-secret"}, "api_key_env"),
        ({"api_key_env": "hf_secret"}, "api_key_env"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"max_attempts": 0}, "max_attempts"),
    ],
)
def test_endpoint_settings_are_refused_by_name_and_without_secrets(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=rf"endpoint\.{named}") as refusal:
        ChatEndpoint(**{"base_url": "http://127.0.0.1/v1", **settings})
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("value", [None, "", "  ", "sk-secret with spaces", "sk-secret\nsecond", "sk-sécret"])
def test_a_missing_or_broken_key_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_JUDGE_KEY", value)
    endpoint = ChatEndpoint("http://127.0.0.1/v1", api_key_env="TEST_JUDGE_KEY")
    with pytest.raises(SettingError, match="TEST_JUDGE_KEY") as refusal:
        endpoint.key()
    assert "sk-" not in str(refusal.value)


def test_both_forms_of_retry_after() -> None:
    assert _retry_after(None) is None
    assert _retry_after("soon") is None
    assert _retry_after("17") == 17.0
    assert _retry_after("-3") == 0.0
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    in_the_future = _retry_after("Fri, 21 Oct 2995 07:28:00 GMT")
    assert in_the_future is not None
    assert in_the_future > 1e9


# --- reward model ---

CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }} [end] {% endfor %}"
ROWS = [{"x": "write a poem"}, {"x": "about the sea"}, {"x": "write"}]
REFERENCES = ["rain falls", "the sea is blue and grey and blue", "a poem"]
OUTPUTS = ["it falls all day and all day", "grey", "a poem"]


def save_byte_tokenizer(folder: Path, chat_template: str = CHAT_TEMPLATE) -> Qwen2Tokenizer:
    """Qwen2's own class over single bytes; no padding token, as many decoders come."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.pad_token = None
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_decoder(**changes: Any) -> Qwen2Config:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"vocab_size": 257, "num_key_value_heads": 1, "num_labels": 1, "initializer_range": 0.5}
    return Qwen2Config(**{**sizes, **more, **changes})


@pytest.mark.parametrize("end", ["[end] ", "<|endoftext|>"])
def test_decoder_reward_model_in_a_padded_batch_equals_one_at_a_time(tmp_path: Path, end: str) -> None:
    torch.manual_seed(0)
    tokenizer = save_byte_tokenizer(tmp_path, CHAT_TEMPLATE.replace("[end] ", end))
    assert tokenizer.pad_token is None
    model = Qwen2ForSequenceClassification(tiny_decoder()).eval()
    model.save_pretrained(tmp_path)

    def reward(instruction: str, answer: str) -> float:
        text = f"[user] {instruction} {end}[assistant] {answer} {end}"
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        hidden = model.model(input_ids=ids).last_hidden_state[0, -1]  # the last token carries the reward
        return model.score(hidden).item()

    judge: Judge = RewardModelJudge(str(tmp_path), temperature=2.0, batch_size=4, device="cpu")
    preferences = judge.preferences(ROWS, REFERENCES, OUTPUTS)
    with torch.no_grad():
        expected = [
            1 + sigma((reward(row["x"], out) - reward(row["x"], ref)) / 2.0)
            for row, ref, out in zip(ROWS, REFERENCES, OUTPUTS, strict=True)
        ]
    assert preferences == pytest.approx(expected, abs=1e-6)
    assert preferences[2] == 1.5
    assert abs(preferences[0] - 1.5) > 1e-3  # the random model tells answers apart, so the test can fail


def test_processes_share_out_the_texts_of_a_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    save_byte_tokenizer(tmp_path)
    Qwen2ForSequenceClassification(tiny_decoder()).eval().save_pretrained(tmp_path)
    judge = RewardModelJudge(str(tmp_path), batch_size=2, device="cpu")
    pairs = [("question", "long " * i) for i in range(7)]
    expected = judge.rewards(pairs)
    parts: list[list[tuple[int, float]]] = []
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "joined", lambda found: parts.append(found) or found)
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        judge.rewards(pairs)
    assert [len(part) for part in parts] == [3, 2, 2]  # batches of two in turn: 0 1, 2 3, 4 5, 6
    assert [value for _, value in sorted(each for part in parts for each in part)] == pytest.approx(expected, abs=1e-6)


def test_encoder_reward_model_reads_a_pair_of_texts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = " ".join([*OUTPUTS, *(row["x"] for row in ROWS)]).split()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = BertTokenizer(vocab=vocab)
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    pairs = [(row["x"], answer) for row, answer in zip(ROWS, OUTPUTS, strict=True)]
    rewards = RewardModelJudge(str(tmp_path), batch_size=2, device="cpu").rewards(pairs)
    with torch.no_grad():
        expected = [model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]
    assert rewards == pytest.approx(expected, abs=1e-5)


def test_the_chat_template_alone_writes_the_special_tokens() -> None:
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "there"])}
    tokenizer = BertTokenizer(vocab=vocab)  # adds [CLS] and [SEP] of its own, as Llama's adds a start token
    tokenizer.chat_template = "[CLS]{% for m in messages %}{{ m.content }}[SEP]{% endfor %}"
    assert RewardModelJudge._encode(tokenizer, "hello", "there")["input_ids"] == [2, 5, 3, 6, 3]


def test_texts_beyond_max_length_are_cut_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    save_byte_tokenizer(tmp_path)
    Qwen2ForSequenceClassification(tiny_decoder()).save_pretrained(tmp_path)
    # One token per byte; the answers part ways after the prompt and "the sea is ".
    length = len("[user] write a poem [end] [assistant] the sea is ")
    judge = RewardModelJudge(str(tmp_path), max_length=length, device="cpu")
    one, other = judge.rewards([("write a poem", "the sea is grey"), ("write a poem", "the sea is blue")])
    assert one == pytest.approx(other, abs=1e-6)
    uncut = RewardModelJudge(str(tmp_path), device="cpu").rewards([("a", "grey"), ("a", "blue")])
    assert uncut[0] != pytest.approx(uncut[1], abs=1e-3)
    assert "2 of 2 texts" in caplog.text


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Qwen2ForCausalLM, "score.weight"),  # a language model: its reward head would be random
        (Qwen2ForSequenceClassification, "2 outputs"),
    ],
)
def test_what_is_no_reward_model_is_refused(tmp_path: Path, model: Any, why: str) -> None:
    save_byte_tokenizer(tmp_path)
    model(tiny_decoder(num_labels=1 if model is Qwen2ForCausalLM else 2)).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=why):
        RewardModelJudge(str(tmp_path)).preferences(ROWS, REFERENCES, OUTPUTS)


def test_a_reward_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"judge\.model") as refusal:
        RewardModelJudge(str(tmp_path / "nowhere")).preferences(ROWS, REFERENCES, OUTPUTS)
    assert "\n" not in str(refusal.value)


# --- configs ---


@pytest.mark.parametrize("name", ["oracle", "alpaca_eval", "reward_model"])
def test_configs_make_judges_and_every_key_is_explained(name: str) -> None:
    path = CONF / f"{name}.yaml"
    judge: Judge = instantiate(OmegaConf.load(path))
    assert judge.name
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.split("#")[0].strip() and "_target_" not in line and not line.endswith(":"):
            assert "  # " in line, line


def test_no_config_holds_anything_but_the_name_of_a_key() -> None:
    config = yaml.safe_load((CONF / "alpaca_eval.yaml").read_text(encoding="utf-8"))
    assert config["endpoint"]["api_key_env"] == "OPENAI_API_KEY"
    assert config["assume_yes"] is False


def test_rows_that_a_judge_could_not_judge_are_refused_before_anything_is_trained() -> None:
    rule = json.dumps({"task": [{"check": "sentences", "n": 1}], "gate": []})
    rows = [{"x": "q", "oracle": rule, "chosen": {"z": "a"}}]
    ruled = WinRates(OracleJudge(0.1), "z")
    ruled.check(rows)
    with pytest.raises(SettingError, match=r"^judge: row 1 has no text in column 'oracle'"):
        ruled.check([*rows, {"x": "q", "chosen": {"z": "a"}}])
    with pytest.raises(SettingError, match=r"^oracle="):
        ruled.check([{**rows[0], "oracle": "42"}])
    with pytest.raises(SettingError, match=r"^evaluation\.answer=y: row 0 has no chosen value .*\(z\)"):
        WinRates(None, "y").check(rows)
    with pytest.raises(SettingError, match=r"^judge: row 0 has no text in column 'x'"):
        WinRates(RewardModelJudge("anywhere"), "z").check([{"question": "q", "chosen": {"z": "a"}}])
    WinRates(None, "z").check(rows)
