"""Train the captioner of table 1 at `mini`: `sysdpo/assets/mini_captioner`.

    python scripts/assets/train_mini_captioner.py

A `LlamaForCausalLM` from scratch that answers this project's own progression prompts with three numbered captions, as
a teacher does who errs on purpose (`taught`): the captions progress as asked in about half of its answers; in the
others they are flat, in another order, or one has a word of quantity at random. Fixed seeds.
"""

import argparse
import copy
import json
import math
import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from mini_captions import WORDS, grade_of_word, phrase, worded
from mini_tokenizer import train_tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sysdpo.components.text.codec import Prompt, TextCodec
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.tools.captions import numbered_captions
from sysdpo.paths import ASSETS
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.tasks.progression.prompts import NOUNS, ProgressionPrompt, make_prompts
from sysdpo.tasks.progression.scenes import ATTRIBUTES, GRADES, PLACES

PROMPT = Prompt("{x}")
MAX_NEW_TOKENS = 48
CONTEXT = 96
HELD_OUT_PLACES = 3
STEPS, BATCH_SIZE, LEARNING_RATE, WARMUP, SEED = 240, 32, 3e-3, 30, 0

SHARES = {"ordered": 0.45, "disordered": 0.08, "flat": 0.30, "one word wrong": 0.16, "unnumbered": 0.01}
"""What the teacher does with a prompt, and how often."""


def taught(prompt: ProgressionPrompt, rng: Random) -> str:
    """The teacher's answer to one prompt."""
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    grades = list(GRADES)
    named = [grades[i] for i in sorted(rng.sample(range(len(grades)), 3))]
    if kind == "disordered":
        right = list(named)
        while named == right:
            rng.shuffle(named)
    elif kind == "flat":
        named = [rng.choice(grades)] * 3
    elif kind == "one word wrong":
        named[rng.randrange(3)] = rng.choice(grades)
    captions = [phrase(prompt.place, prompt.attribute, grade, rng) for grade in named]
    numbers = ["", "", ""] if kind == "unnumbered" else ["1. ", "2. ", "3. "]
    return "\n".join(number + caption for number, caption in zip(numbers, captions, strict=True))


def asked() -> tuple[list[ProgressionPrompt], list[ProgressionPrompt]]:
    """All prompts about the (place, attribute) pairs that table 1 trains on, and all about those it is judged on."""
    templates = 8
    train = (len(PLACES) - HELD_OUT_PLACES) * templates
    return make_prompts(ATTRIBUTES, PLACES, train, HELD_OUT_PLACES * templates, 0, HELD_OUT_PLACES)


def batch(codec: TextCodec, prompts: list[ProgressionPrompt], size: int, rng: Random) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels [size, L] of taught answers, padded on the right; prompts carry no label."""
    rows, starts = [], []
    for prompt in rng.choices(prompts, k=size):
        question = codec.prompt_ids({"x": prompt.x})
        rows.append([*question, *codec.completion_ids(taught(prompt, rng))])
        starts.append(len(question))
    width = max(map(len, rows))
    ids = torch.tensor([row + [codec.pad_token_id] * (width - len(row)) for row in rows])
    place = torch.arange(width)[None]
    lengths, begin = torch.tensor([[len(row)] for row in rows]), torch.tensor(starts)[:, None]
    mask = (place < lengths).long()
    return ids, mask, ids.masked_fill((place < begin) | (mask == 0), -100)


def loss_of(model: LlamaForCausalLM, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of an answer's token, nats."""
    logits = model(input_ids=ids, attention_mask=mask).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def train(codec: TextCodec, tokenizer: PreTrainedTokenizerFast, steps: int) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    torch.manual_seed(SEED)
    began = time.process_time()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=codec.eos_token_id,
            pad_token_id=codec.pad_token_id,
        )
    )
    average = copy.deepcopy(model).requires_grad_(False)
    prompts, unseen = asked()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    recent = []
    for step in range(steps):
        loss = loss_of(model, *batch(codec, prompts, BATCH_SIZE, Random(f"{SEED} {step}")))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        with torch.no_grad():
            decay = min(0.99, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        recent.append(loss.item())
        if (step + 1) % 25 == 0:
            print(f"step {step + 1} loss {np.mean(recent):.4f} CPU s {time.process_time() - began:.0f}", flush=True)
            recent = []
    with torch.no_grad():
        held_out = loss_of(average.eval(), *batch(codec, unseen, 256, Random(f"{SEED} held out")))
    return average, {
        "steps": steps,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
        "train_seconds": round(time.process_time() - began),
        "parameters": sum(p.numel() for p in average.parameters()),
        "train_loss": round(float(np.mean(recent)), 4) if recent else None,
        "held_out_loss": round(float(held_out), 4),
    }


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to 0."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))


def measured(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[ProgressionPrompt]
) -> dict[str, Any]:
    """Of one answer a prompt: percent that parse; of all captions, percent that name place and attribute with a known
    word; of all answers, percent whose levels rise from caption to caption."""
    component = LanguageModel(
        model, tokenizer, PROMPT, generation=MonteCarlo(distinct=False), max_new_tokens=MAX_NEW_TOKENS
    )
    answers = component.sample([{"x": p.x} for p in prompts], 1, list(range(len(prompts))))
    parsed, named, ordered, captions = 0, 0, 0, 0
    order = list(GRADES)
    for prompt, answer in zip(prompts, answers, strict=True):
        found = numbered_captions(str(answer[0]), 3)
        parsed += bool(found)
        captions += len(found)
        grades = []
        for text in found:
            head, tail = f"A {prompt.place} with ", f" {NOUNS[prompt.attribute]}."
            word = text.removeprefix(head).removesuffix(tail)
            if text == head + word + tail:
                try:
                    grades.append(order.index(grade_of_word(word)))
                except StopIteration:
                    continue
        named += len(grades)
        ordered += len(grades) == 3 and grades[0] < grades[1] < grades[2]
    return {
        "answers": len(prompts),
        "parsed_percent": round(100 * parsed / len(prompts), 1),
        "well_formed_captions_percent": round(100 * named / max(1, captions), 1),
        "ordered_percent": round(100 * ordered / len(prompts), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=ASSETS / "mini_captioner")
    args = parser.parse_args()
    prompts, unseen = asked()
    rng = Random(SEED)
    texts = [p.x for p in prompts] + [taught(p, rng) for p in prompts]
    texts += [
        worded(place, a, word) for place in PLACES for a in ATTRIBUTES for both in WORDS.values() for word in both
    ]
    tokenizer = train_tokenizer([*texts, "user", "assistant"], 512, CONTEXT)
    codec = TextCodec(tokenizer, PROMPT, MAX_NEW_TOKENS, CONTEXT)
    model, metrics = train(codec, tokenizer, args.steps)
    metrics["seen"] = measured(model, tokenizer, prompts)
    metrics["held_out"] = measured(model, tokenizer, unseen)
    print(json.dumps(metrics, indent=2))
    shutil.rmtree(args.output, ignore_errors=True)
    half: Any = copy.deepcopy(model).half()
    half.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    template = Path(__file__).with_name("mini_captioner_card.md")
    flat = {f"{part}_{key}": value for part in ("seen", "held_out") for key, value in metrics[part].items()}
    shares = "\n".join(f"| {kind} | {share:.2f} |" for kind, share in SHARES.items())
    fields = {**metrics, **flat, "shares": shares, "parameters": f"{metrics['parameters']:,}"}
    (args.output / "card.md").write_text(template.read_text(encoding="utf-8").format(**fields), encoding="utf-8")


if __name__ == "__main__":
    main()
