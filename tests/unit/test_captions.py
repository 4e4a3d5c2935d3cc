"""From numbered text to captions: exactly as many as the plate has, or none."""

import pytest

from sysdpo.components.text.codec import Prompt, TextCodec, byte_tokenizer
from sysdpo.components.tools.captions import even_captions, numbered_captions

THREE = ["A lake with no snow.", "A lake with some snow.", "A lake with heavy snow."]


@pytest.mark.parametrize(
    "text",
    [
        "1. A lake with no snow.\n2. A lake with some snow.\n3. A lake with heavy snow.",
        " A lake with no snow.\n2. A lake with some snow.\n3. A lake with heavy snow.",  # "1." was forced on the model
        "1) A lake with no snow.\n\n2) A lake with some snow.\n\n3)  A lake\nwith heavy snow.\n\nEnjoy!",
    ],
)
def test_numbered_lines_are_captions(text: str) -> None:
    assert numbered_captions(text, 3) == THREE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A lake.",
        "1. a\n2. b",
        "1. a\n2. b\n3. c\n4. d",
        "1. a\n3. b\n2. c",
        "1. a\n2.\n3. c",
        "Sure! 1. a 2. b 3. c",
    ],
)
def test_anything_else_is_no_caption_at_all(text: str) -> None:
    assert numbered_captions(text, 3) == []


def test_the_number_of_captions_is_free() -> None:
    assert numbered_captions("a\n2. b", 2) == ["a", "b"]
    assert numbered_captions("a", 1) == ["a"]


def test_even_pieces() -> None:
    assert even_captions("abcdefg", 3) == ["ab", "cd", "ef"]
    assert even_captions("ab", 3) == []


def test_a_forced_beginning_leaves_the_first_word_its_space() -> None:
    """What is scored is what was drawn: " A" and "A" are different tokens."""
    codec = TextCodec(byte_tokenizer(), Prompt("{x}", prefix="1."), max_new_tokens=20)
    ids = codec.completion_ids(" A lake.")
    assert codec.decode(ids) == " A lake."
    assert codec.completion_ids(codec.decode(ids)) == ids
    assert TextCodec(byte_tokenizer(), Prompt("{x}"), max_new_tokens=20).decode(ids) == "A lake."
