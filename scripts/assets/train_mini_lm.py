"""Train the small language model that ships in `sysdpo/assets/mini_lm` (table 2 at `mini`).

    python scripts/assets/train_mini_lm.py                      # the shipped weights, from scratch, on one CPU thread
    python scripts/assets/train_mini_lm.py --evaluate-only      # metrics and card again

A `LlamaForCausalLM` of less than a million weights with one token a word, trained on what the imperfect teachers of
`sysdpo.tasks.mini.teachers` say in four roles. Fixed seeds. Its own criteria: loss on held-out prompts, scores of the
untrained systems, how often samples differ in score, and what a better or worse first text does to the answer.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from measure_mini_lm import evaluate, held_out_loss, write_card
from mini_lm_batches import batches, completion_loss, role_codecs
from muon import Muon
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from sysdpo.components.text.codec import TextCodec
from sysdpo.paths import ASSETS
from sysdpo.tasks.mini.tokenizer import build_tokenizer

FOLDER = ASSETS / "mini_lm"

ARCHITECTURE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "rope_theta": 10_000.0,
}


def train(args: argparse.Namespace, codecs: dict[str, TextCodec], vocab_size: int) -> tuple[LlamaForCausalLM, float]:
    torch.manual_seed(args.seed)
    tokenizer = codecs["draft"].tokenizer
    tokens: dict[str, Any] = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **{**tokens, **ARCHITECTURE}))
    bring_cases_together(model, tokenizer)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or "embed" in name]
    muon, adam = Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.perf_counter()
    losses: list[float] = []
    source = batches(args.seed, codecs, args.batch_size, args.skilled_steps)
    for step in range(args.steps):
        rate = schedule(step, args)
        for group in adam.param_groups:
            group["lr"] = args.learning_rate * rate
        loss = completion_loss(model, *next(source))
        loss.backward()
        muon.step(args.matrix_learning_rate * rate)
        adam.step()
        model.zero_grad()
        losses.append(loss.item())
        if (step + 1) % args.report_every == 0:
            recent = sum(losses[-args.report_every :]) / args.report_every
            held = held_out_loss(model, codecs, 50, args.seed)
            print(f"{step + 1:6d}  {time.perf_counter() - started:6.0f} s  {recent:.4f}  {held}", flush=True)
    return model.eval(), time.perf_counter() - started


@torch.no_grad()
def bring_cases_together(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """A word in upper case starts as the word and a vector common to all: which words belong together is given."""
    embeddings: Any = model.get_input_embeddings()
    embedding: torch.Tensor = embeddings.weight
    tokens = tokenizer.get_vocab()
    common = torch.randn(embedding.shape[1]) * model.config.initializer_range
    for token, index in tokens.items():
        if token.lower() != token and token.lower() in tokens:
            embedding[index] = embedding[tokens[token.lower()]] + common


def schedule(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, a plateau, and a linear cool-down to a fiftieth."""
    return min(1.0, (step + 1) / args.warmup, max(0.02, (args.steps - step) / args.cooldown))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=900, help="updates (default %(default)s)")
    parser.add_argument(
        "--skilled-steps", type=int, default=500, help="first ones, with skilled teachers (default %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="examples an update (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="AdamW's, for vectors and embeddings")
    parser.add_argument("--matrix-learning-rate", type=float, default=0.02, help="Muon's (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=20, help="updates of linear warm-up (default %(default)s)")
    parser.add_argument("--cooldown", type=int, default=450, help="updates of linear cool-down (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default %(default)s)")
    parser.add_argument("--report-every", type=int, default=50, help="updates between lines (default %(default)s)")
    parser.add_argument("--prompts", type=int, default=400, help="held-out prompts measured (default %(default)s)")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the finished weights")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the weights in --output again")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    path = args.output / "metrics.json"
    tokenizer = build_tokenizer()
    codecs = role_codecs(tokenizer)
    if args.evaluate_only:
        metrics: dict[str, Any] = json.loads(path.read_text())
    else:
        model, seconds = train(args, codecs, len(tokenizer))
        model.half().save_pretrained(args.output)
        tokenizer.save_pretrained(args.output)
        metrics = {
            **{
                key: getattr(args, key)
                for key in (
                    "steps",
                    "skilled_steps",
                    "batch_size",
                    "learning_rate",
                    "matrix_learning_rate",
                    "warmup",
                    "cooldown",
                    "seed",
                )
            },
            "train_seconds": round(seconds),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
    metrics["held_out"] = evaluate(args.output, args.prompts, args.seed)
    path.write_text(json.dumps(metrics, indent=2) + "\n")
    write_card(args.output, metrics)
    print(json.dumps(metrics["held_out"], indent=1))


if __name__ == "__main__":
    main()
