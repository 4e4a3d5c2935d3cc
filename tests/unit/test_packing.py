"""The layout of shared-prefix sequences, the rule for completions, and the tokens of prompts."""

import pytest
import torch
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from sysdpo.components.text.codec import Prompt, TextCodec, byte_tokenizer
from sysdpo.components.text.packing import Completion, MaskFunction, pack
from sysdpo.components.text.probe import probe
from sysdpo.errors import SettingError
from tests.systems import make_tiny

FIRST = Completion((7, 8), (1, 2, 3))
SECOND = Completion((7, 8), (4,))
OTHER = Completion((9,), (5, 6))


def test_layout_by_hand() -> None:
    packed = pack([FIRST, SECOND, OTHER, FIRST], share_prefix=True, pad_token_id=0)
    assert packed.input_ids.tolist() == [[7, 8, 1, 2, 3, 4], [9, 5, 6, 0, 0, 0]]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 3, 4, 2]
    assert packed.position_ids[1, :3].tolist() == [0, 1, 2]
    assert packed.segments.tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 1, -1, -1, -1]]
    assert packed.positions.tolist() == [1, 2, 3, 1, 6, 7]  # where each token is predicted, rows of six
    assert packed.targets.tolist() == [1, 2, 3, 4, 5, 6]
    assert packed.owners.tolist() == [0, 0, 0, 1, 2, 2]
    assert packed.rows.tolist() == [0, 1, 2, 0]  # the repeated row is computed once
    assert packed.num_completions == 3


def seen(own: MaskFunction) -> list[list[list[int]]]:
    """The keys that each query of each sequence of a pack of three completions sees, under a model's own mask."""
    packed = pack([FIRST, SECOND, OTHER], share_prefix=True, pad_token_id=0)
    visible = packed.mask_function(own)
    index = [torch.tensor(i) for i in range(6)]
    return [
        [[k for k in range(6) if visible(index[s], index[0], index[q], index[k])] for q in range(6)] for s in (0, 1)
    ]


def test_a_completion_sees_its_prompt_and_itself_only() -> None:
    first, second = seen(causal_mask_function)  # type: ignore[arg-type]
    assert first == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 5]]
    assert second[:3] == [[0], [0, 1], [0, 1, 2]]
    assert all(second)  # no position sees nothing, padding neither: its softmax would be NaN


def test_a_sliding_window_slides_over_positions_not_over_the_sequence() -> None:
    """Of two tokens: the second completion, position 2, sees position 1 of the prompt although it lies four back."""
    first, _ = seen(sliding_window_causal_mask_function(2))  # type: ignore[arg-type]
    assert first == [[0], [0, 1], [1, 2], [2, 3], [3, 4], [1, 5]]


def test_without_sharing_nothing_but_the_tokens_is_passed() -> None:
    packed = pack([FIRST, SECOND], share_prefix=False, pad_token_id=0)
    assert list(packed.arguments(None)) == ["input_ids"]  # type: ignore[arg-type]


def test_without_sharing_every_completion_has_a_sequence_and_needs_no_mask() -> None:
    packed = pack([FIRST, SECOND], share_prefix=False, pad_token_id=0)
    assert packed.input_ids.tolist() == [[7, 8, 1, 2, 3], [7, 8, 4, 0, 0]]
    assert not packed.shares_prefix


def codec(max_new_tokens: int = 4, max_length: int | None = None, prompt: Prompt | None = None) -> TextCodec:
    return TextCodec(byte_tokenizer(), prompt or Prompt("{x}"), max_new_tokens, max_length)


class TestCompletionIds:
    """The end token belongs to a text, unless the limit cut the text off before it could be said."""

    def test_rule(self) -> None:
        c = codec(max_new_tokens=4)
        end = c.eos_token_id
        plain = c.tokenizer("abcdef", add_special_tokens=False)["input_ids"]
        assert len(plain) == 6
        assert c.completion_ids("abc") == (*plain[:3], end)
        assert c.completion_ids("abcd") == tuple(plain[:4])
        assert c.completion_ids("abcdef") == tuple(plain[:4])
        assert c.completion_ids("") == (end,)

    def test_decoding_stops_before_the_end_token(self) -> None:
        c = codec(max_new_tokens=9)
        ids = c.completion_ids("héllo")
        assert c.decode(ids) == "héllo"
        assert c.decode([*ids, *c.completion_ids("more")]) == "héllo"
        assert c.decode([c.eos_token_id]) == ""


class TestPrompt:
    def test_chat_turns_examples_and_prefix(self) -> None:
        prompt = Prompt("Q: {x} {y}", "Be {y}.", (("two", "2"),), prefix="1.")
        c = codec(prompt=prompt)
        text = c.tokenizer.decode(list(c.prompt_ids({"x": "six", "y": "brief"})))
        turns = ["system\nBe brief.", "user\ntwo", "assistant\n2", "user\nQ: six brief"]
        assert text == "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n1."

    def test_braces_in_values_and_doubled_braces_in_templates_are_text(self) -> None:
        messages = Prompt("{{json}} {x}").messages({"x": "{y} {0}"})
        assert messages[-1]["content"] == "{json} {y} {0}"

    def test_lists_are_joined_by_lines(self) -> None:
        assert Prompt("{x}").messages({"x": ["a", "b"]})[-1]["content"] == "a\nb"

    def test_a_base_model_without_template_gets_plain_text(self) -> None:
        c = codec(prompt=Prompt("{x}", "Sys."))
        c.tokenizer.chat_template = None
        assert c.tokenizer.decode(list(c.prompt_ids({"x": "hello"}))) == "Sys.\n\nhello\n\n"

    def test_an_unknown_placeholder_is_refused_with_the_nearest_parent(self) -> None:
        with pytest.raises(SettingError, match=r"components\.psi2\.prompt names \{draf\}.*did you mean 'draft'"):
            Prompt("{draf}").check("psi2", ["x", "draft"])
        Prompt("{x} {{not a name}}").check("psi2", ["x"])

    @pytest.mark.parametrize("template", ["{}", "{x", "x}", "{x.y}", "{0}", "{x!z}"])
    def test_a_malformed_template_is_refused(self, template: str) -> None:
        with pytest.raises(SettingError, match="prompt"):
            Prompt(template).check("psi1", ["x"])

    def test_a_prompt_that_leaves_no_room_is_refused(self) -> None:
        short = codec(max_new_tokens=4, max_length=60)
        turns = len(short.prompt_ids({"x": ""}))
        assert len(short.prompt_ids({"x": "a" * (56 - turns)})) == 56
        with pytest.raises(SettingError, match=r"57 tokens and max_new_tokens=4 exceed the model's context of 60"):
            short.prompt_ids({"x": "a" * (57 - turns)})

    def test_max_new_tokens_must_be_positive(self) -> None:
        with pytest.raises(SettingError, match="max_new_tokens=0"):
            codec(max_new_tokens=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_models_in_16_bits_pack_as_those_in_32_do(attention: str) -> None:
    """The probe computes in fp32 whatever the weights are; the mask of a pack has to follow it."""
    assert probe(make_tiny(dtype="bfloat16", attention=attention).causal_lm, "tiny").packs
