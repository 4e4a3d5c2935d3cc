"""The miniature's vocabulary: one token a word, a real fast tokenizer of transformers."""

from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from sysdpo.components.text.codec import CHATML
from sysdpo.tasks.mini.tasks import ENDINGS, MARKS, NUMBERS, OPENINGS
from sysdpo.tasks.mini.words import CATEGORIES, COLOURS, SIZES, THINGS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>")
_TURNS = ("system", "user", "assistant")
_PROMPTS = """
    list name give without keep drop the of sort reverse join and count in upper case separated by ending with starting
    take use mark open close Suggested answer: Instruction: Plan the answer: Plan:
""".split()  # noqa: SIM905


def vocabulary() -> list[str]:
    """All tokens, special ones first: every word of the world in both cases, and the words of prompts and plans."""
    said = [thing.name for thing in THINGS] + [*NUMBERS, *ENDINGS, *OPENINGS]
    words = [*said, *(word.upper() for word in said), *CATEGORIES, *SIZES, *COLOURS, *MARKS, *_TURNS, *_PROMPTS]
    return list(dict.fromkeys([*SPECIAL, *words]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words between spaces are tokens; turns are ChatML's."""
    tokens = {token: index for index, token in enumerate(vocabulary())}
    backend = Tokenizer(WordLevel(vocab=tokens, unk_token="<|unknown|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|unknown|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer
