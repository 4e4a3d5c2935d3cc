"""Text in and out of a language model: prompt templates, chat templates, and the tokens of a completion."""

import itertools
import logging
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sysdpo.components.text.conversation import unfold
from sysdpo.components.text.template import ChatTemplate
from sysdpo.errors import SettingError, TooLong, nearest
from sysdpo.paths import ASSETS

log = logging.getLogger(__name__)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


TEXT_LIMIT = 4_000_000
"""Characters of a prompt beyond which it is not even tokenised: tokens take up to 200 bytes each."""
PASSAGE = ASSETS / "passages" / "nature.txt"
"""What made-up texts are cut from."""
CHARACTERS_PER_TOKEN = 12
"""More than any tokenizer's mean."""


@dataclass(frozen=True)
class Prompt:
    """What a component is asked: templates in which `{name}` stands for a parent (`{{` and `}}` for braces).

    Where one component draws several variables, `user` may be a list of templates: a variable is asked with the one
    that names most of its own parents and nothing else. `examples` are few-shot turns, each `{user: …, assistant: …}`,
    put before the question word for word. `prefix` is the beginning of the answer, forced on the model and not counted
    as its own.
    """

    user: str | tuple[str, ...]
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    prefix: str = ""

    @property
    def templates(self) -> tuple[str, ...]:
        return (self.user,) if isinstance(self.user, str) else self.user

    def template(self, parents: Collection[str]) -> str | None:
        """The question for a variable with these parents; None if every one names something else."""
        fitting = [t for t in self.templates if placeholders(t) <= set(parents)]
        return max(fitting, key=lambda t: len(placeholders(t)), default=None)

    def check(self, component: str, parents: Collection[str]) -> None:
        fitting = self.template(parents)
        user = fitting if fitting is not None else self.templates[0]
        if fitting is None and len(self.templates) > 1:
            raise SettingError(
                f"components.{component}.prompt.user: each of the {len(self.templates)} templates names something else "
                f"than the parents {', '.join(sorted(parents))}."
            )
        for name in sorted(placeholders(user) | placeholders(self.system or "")):
            if name not in parents:
                raise SettingError(
                    f"components.{component}.prompt names {{{name}}}, which is not a parent: {nearest(name, parents)}"
                )

    def messages(self, parents: Mapping[str, Any]) -> list[dict[str, str]]:
        template = self.template(parents)
        named = placeholders(str(template)) | placeholders(self.system or "")
        systems, earlier, plain = unfold(parents, named)
        texts = {name: _as_text(value) for name, value in plain.items()}
        if self.system is not None:
            systems = [self.system.format(**texts), *systems]
        messages = [{"role": "system", "content": "\n\n".join(systems)}] if systems else []
        for user, assistant in self.examples:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        messages += [turn._asdict() for turn in earlier]
        return [*messages, {"role": "user", "content": str(template).format(**texts)}]


@lru_cache(maxsize=1024)
def placeholders(template: str) -> frozenset[str]:
    """The names of the parents that a template asks for."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SettingError(f"prompt {template!r}: {error}; write {{{{ and }}}} for braces.") from error
    for _, field, form, conversion in parsed:
        if field is not None and (not field.isidentifier() or form or conversion):
            raise SettingError(f"prompt {template!r}: write the name of a parent in each pair of braces.")
    return frozenset(field for _, field, _, _ in parsed if field)


def _as_text(value: Any) -> str:
    """A list line by line; nothing for a variable that was not drawn."""
    if value is None:
        return ""
    return "\n".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


class TextCodec:
    """Prompts and completions as token ids, for one tokenizer, one prompt and one limit on new tokens.

    Attributes:
        eos_token_id: what is scored after an answer: the token that the chat template writes there.
        stop_token_ids: any of them ends a generation; `stops` of them are the model's own (its generation config).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        max_new_tokens: int,
        max_length: int | None = None,
        stops: Collection[int] = (),
    ) -> None:
        if max_new_tokens < 1:
            raise SettingError(f"max_new_tokens={max_new_tokens}: must be at least 1.")
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.max_length = max_length
        known = [token for token in stops if 0 <= token < len(tokenizer)]
        ends = [token for token in (self.template.end, tokenizer.eos_token_id, *known) if token is not None]
        if not ends:
            raise SettingError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no end token, and neither its chat template nor the "
                "generation config names one; set eos_token in its tokenizer_config.json."
            )
        self.stop_token_ids = tuple(dict.fromkeys(map(int, ends)))
        self.eos_token_id: int = self.stop_token_ids[0]
        self.pad_token_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_token_id)
        self._ids = lru_cache(maxsize=65_536)(self.template.text_ids)
        self._prompts = lru_cache(maxsize=65_536)(self._tokenize)

    def within(self, rows: int) -> None:
        """Keep to the tokens that the model has: a tokenizer may have been given more, a [PAD] for one."""
        if self.eos_token_id >= rows:
            name = self.tokenizer.convert_ids_to_tokens(self.eos_token_id)
            raise SettingError(
                f"{self.tokenizer.name_or_path!r}: its end token {name!r} is number {self.eos_token_id}, and the model "
                f"has {rows} tokens; enlarge its embeddings."
            )
        self.stop_token_ids = tuple(token for token in self.stop_token_ids if token < rows)
        self.pad_token_id = self.pad_token_id if self.pad_token_id < rows else self.eos_token_id

    def ends_with(self, token: int) -> None:
        """An answer ends with this token, beside those that end a generation already."""
        self.eos_token_id = token
        self.stop_token_ids = tuple(dict.fromkeys([token, *self.stop_token_ids]))

    def _tokenize(self, turns: tuple[tuple[str, str], ...]) -> tuple[int, ...]:
        return self.template.prompt_ids([{"role": r, "content": c} for r, c in turns], self.prompt.prefix)

    def prompt_ids(self, parents: Mapping[str, Any]) -> tuple[int, ...]:
        """The question as the model sees it, up to where its own answer begins."""
        messages = self.prompt.messages(parents)
        ids = self._prompts(tuple((m["role"], m["content"]) for m in messages))
        if self.max_length is not None and len(ids) + self.max_new_tokens > self.max_length:
            text = self.tokenizer.decode(list(ids[:60]))
            raise TooLong(
                f"a prompt of {len(ids)} tokens and max_new_tokens={self.max_new_tokens} exceed the model's context "
                f"of {self.max_length}; shorten the prompt or lower max_new_tokens. It begins: {str(text)[:60]!r}"
            )
        return ids

    @cached_property
    def character_limit(self) -> int:
        """Characters beyond which no prompt fits: every token of the context as long as the vocabulary's longest."""
        if self.max_length is None:
            return TEXT_LIMIT
        return min(TEXT_LIMIT, max(map(len, self.tokenizer.get_vocab())) * self.max_length)

    def check_length(self, parents: Mapping[str, Any], drafts: Mapping[str, int]) -> None:
        """Refuse a prompt that exceeds the context, or will once its parents are drawn ({parent: its most tokens})."""
        longest = sum(len(value) for value in parents.values() if isinstance(value, str))
        if longest > self.character_limit:  # not even worth the memory of its tokens
            raise TooLong(f"a prompt of {longest} characters is longer than any context; shorten the prompt.")
        ids = self.prompt_ids(parents)
        text = f"{self.prompt.template(parents)}{self.prompt.system or ''}"
        coming = sum(tokens * text.count(f"{{{name}}}") for name, tokens in drafts.items())
        if self.max_length is not None and len(ids) + coming + self.max_new_tokens > self.max_length:
            raise TooLong(
                f"a prompt of {len(ids)} tokens, to which drafts add up to {coming}, and max_new_tokens="
                f"{self.max_new_tokens} exceed the model's context of {self.max_length}; shorten the prompt or lower "
                "max_new_tokens."
            )

    def check_known(self, ids: Sequence[int], what: str) -> None:
        """Refuse tokens of which one stands for an unknown word: their scores would say nothing of the text."""
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown not in (self.eos_token_id, self.pad_token_id) and unknown in ids:
            known = self.tokenizer.decode([token for token in ids if token != unknown][:30], skip_special_tokens=True)
            raise SettingError(
                f"the {what} has words that the model's vocabulary of {len(self.tokenizer)} tokens lacks; choose a "
                f"model that knows them (scale=laptop). What it knows of it: {str(known)[:60]!r}"
            )

    def count(self, text: str) -> int:
        """How many tokens a whole text has, its end token left out."""
        return len(self._ids(text[:TEXT_LIMIT]))

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """The tokens whose probability is p(text | prompt): with the end token, unless the limit cut the text off."""
        ids = self._ids(text)
        return (*ids, self.eos_token_id) if len(ids) < self.max_new_tokens else ids[: self.max_new_tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion: everything before the first token that ends it."""
        stop = next((i for i, token in enumerate(ids) if token in self.stop_token_ids), len(ids))
        text = str(self.tokenizer.decode(list(ids[:stop]), skip_special_tokens=True))
        # after a forced beginning the first word carries its own space, and belongs to other tokens without it
        return text.rstrip() if self.prompt.prefix else text.strip()

    def made_up(self, key: int, tokens: int) -> str:
        """A text of that many tokens, in English, which begins with the key read backwards: short texts differ too."""
        passage = " ".join(PASSAGE.read_text(encoding="utf-8").split())
        needed = tokens * CHARACTERS_PER_TOKEN
        text = f"{str(key)[::-1]} " + (passage * (1 + needed // len(passage)))[:needed]
        return str(self.tokenizer.decode(self.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]))


def byte_tokenizer(vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """One token a byte and ChatML turns: a real tokenizer that needs no file, for models with random weights.

    With `vocab_size`, every further id reads as one letter or digit: what a large random model samples is text, and has
    as many tokens when another model reads it.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*specials, *alphabet]
    characters = string.ascii_letters + string.digits
    triples = ("".join(triple) for triple in itertools.product(characters, repeat=3))
    tokens += itertools.islice(triples, max(0, (vocab_size or 0) - len(tokens)))
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = decoders.Replace(Regex(f"(?<=^[{characters}])[{characters}]{{2}}$"), "")  # of a triple
    backend.decoder = decoders.Sequence([first, decoders.ByteLevel()])
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def local_tokenizer(source: str, vocab_size: int, subfolder: str = "") -> PreTrainedTokenizerBase:
    """A model's own tokenizer if this machine has it, else one token a byte; for random weights, never downloads."""
    try:
        return AutoTokenizer.from_pretrained(source, subfolder=subfolder, local_files_only=True)
    except (OSError, ValueError):
        log.info("%s: its tokenizer is not on this machine; one token a byte stands in", source)
        return byte_tokenizer(vocab_size)
