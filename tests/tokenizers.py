"""Tokenizers of the kinds that people's models have, one token a byte: chat templates, ends of turns, BOS habits."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from sysdpo.components.text.codec import CHATML

LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + "
    "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

KINDS: dict[str, dict[str, Any]] = {
    "chatml": {"specials": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "eos": "<|im_end|>", "template": CHATML},
    "llama3": {
        "specials": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "eos": "<|end_of_text|>", "bos": "<|begin_of_text|>", "template": LLAMA3, "end": "<|eot_id|>",
    },
    "gemma": {
        "specials": ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "eos": "<eos>", "bos": "<bos>", "template": GEMMA, "end": "<end_of_turn>", "system": False,
    },
    "phi": {
        "specials": ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "eos": "<|endoftext|>", "template": PHI, "end": "<|end|>",
    },
    "no end of its own": {
        "specials": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "eos": None, "template": CHATML,
        "end": "<|im_end|>",
    },
    "added as words": {
        "specials": ["<|endoftext|>"], "words": ["<|im_start|>", "<|im_end|>", "<think>", "word", "\n\n"],
        "eos": "<|endoftext|>", "template": CHATML, "end": "<|im_end|>",
    },
    "base": {"specials": ["<unk>", "<s>", "</s>"], "eos": "</s>", "bos": "<s>", "template": None},
}  # fmt: skip
"""`end`: what the template writes after an answer, where it is not the tokenizer's own end token; `words`: tokens that
were added without being special."""


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Those with a BOS write it before every text that they are given, as Llama's and Gemma's do."""
    form = KINDS[kind]
    words = form.get("words", [])
    tokens = [*form["specials"], *words, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in form["specials"]])
    backend.add_tokens([AddedToken(token, special=False) for token in words])
    bos = form.get("bos")
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=form["eos"], bos_token=bos, pad_token=form["specials"][0]
    )
    tokenizer.chat_template = form["template"]
    return tokenizer
