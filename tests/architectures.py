"""Causal language models of transformers in sizes for tests: random weights, one token a byte, all mechanisms alive."""

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

BASE = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
GPT = {**BASE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
WINDOW = {**BASE, "sliding_window": 8}
HEAD = {"head_dim": 8}
MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": BASE,
    "mistral": WINDOW,
    "mistral without window": {**BASE, "model_type": "mistral", "sliding_window": None},
    "mixtral": {**WINDOW, **MOE},
    "ministral": {**WINDOW, **HEAD},
    "gemma": {**BASE, **HEAD},
    "gemma2": {**WINDOW, **HEAD, **MIXED, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": {**WINDOW, **HEAD, **MIXED},
    "qwen2": BASE,
    "qwen2 with window": {**WINDOW, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {**BASE, **MOE},
    "qwen3": {**BASE, **HEAD},
    "qwen3_moe": {**BASE, **HEAD, **MOE},
    "qwen3_next": {
        **BASE, **HEAD, **MOE, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "phi": BASE,
    "phi3": WINDOW,
    "phimoe": {**WINDOW, **MOE},
    "starcoder2": WINDOW,
    "gpt_oss": {**WINDOW, **HEAD, **MOE, **MIXED},
    "cohere": {**BASE, "logit_scale": 0.25},
    "cohere2": {**WINDOW, **MIXED, "logit_scale": 0.25},
    "gpt2": GPT,
    "gpt_neo": {
        **GPT, "num_layers": 2, "num_heads": 4, "window_size": 8, "attention_types": [[["global", "local"], 1]],
    },
    "gpt_neox": BASE,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_bigcode": GPT,
    "codegen": {**GPT, "rotary_dim": 4},
    "opt": {**BASE, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": GPT,
    "mpt": {**BASE, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "falcon": BASE,
    "falcon with alibi": {**BASE, "model_type": "falcon", "alibi": True},
    "mamba": {**BASE, "state_size": 4},
    "mamba2": {**BASE, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {**BASE, "state_size": 4},
    "jamba": {
        **BASE, **MOE, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_d_state": 4, "use_mamba_kernels": False,
    },
    "bamba": {
        **BASE, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
        "mamba_d_state": 4, "mamba_chunk_size": 8,
    },
    "nemotron_h": {
        **BASE, **HEAD, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8,
        "ssm_state_size": 4, "n_groups": 1, "chunk_size": 8,
    },
    "falcon_h1": {
        **BASE, **HEAD, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
        "mamba_d_state": 4, "mamba_chunk_size": 8,
    },
    "granitemoehybrid": {
        **BASE, **MOE, "layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8,
        "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_chunk_size": 8, "shared_intermediate_size": 32,
    },
    "lfm2": {**BASE, "layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {**BASE, "lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    "rwkv": {**BASE, "attention_hidden_size": 32, "context_length": 256},
    "xlstm": {**BASE, "num_heads": 4, "embedding_dim": 32, "qk_dim_factor": 0.5, "v_dim_factor": 1.0, "chunk_size": 8},
    "olmo": BASE,
    "olmo2": BASE,
    "olmo3": {**WINDOW, **MIXED},
    "olmoe": {**BASE, **MOE},
    "stablelm": BASE,
    "granite": {**BASE, "logits_scaling": 2.0},
    "nemotron": BASE,
    "glm4": {**BASE, **HEAD},
    "smollm3": BASE,
    "exaone4": {**WINDOW, **MIXED, "sliding_window_pattern": 2},
    "llama4_text": {
        **BASE, **HEAD, **MOE, "attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"],
        "intermediate_size_mlp": 64, "no_rope_layers": [1, 0], "moe_layers": [], "interleave_moe_layer_step": 1,
    },
    "deepseek_v3": {
        **BASE, **MOE, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    },
    "modernbert-decoder": {**BASE, "local_attention": 8, "global_attn_every_n_layers": 2, **MIXED},
    "minimax": {**BASE, **MOE, **HEAD, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "diffllama": BASE,
    "doge": BASE,
    "persimmon": BASE,
    "biogpt": BASE,
    "xglm": {**BASE, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    "ctrl": {**GPT, "dff": 64},
    "openai-gpt": GPT,
    "apertus": BASE,
    "cwm": {**WINDOW, **HEAD, **MIXED},
    "ernie4_5": {**BASE, **HEAD},
    "glm4_moe": {
        **BASE, **HEAD, **MOE, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    },
    "gemma3n_text": {
        **WINDOW, **HEAD, **MIXED, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 259,
        "hidden_size_per_layer_input": 8, "laurel_rank": 4, "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 2,
    },
    "minimax_m2": {**BASE, **HEAD, **MOE},
    "qwen3_5_text": {
        **BASE, **HEAD, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "seed_oss": {**BASE, **HEAD},
    "roberta as decoder": {**BASE, "model_type": "roberta", "type_vocab_size": 1, "is_decoder": True},
    "bart": {
        **BASE, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
        "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 32,
    },
    "bert": BASE,
    "bert as decoder": {**BASE, "model_type": "bert", "is_decoder": True},
    "xlm": {**BASE, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": False},
}  # fmt: skip


def build(name: str) -> PreTrainedModel:
    import torch

    keys = dict(ARCHITECTURES[name])
    config = AutoConfig.for_model(keys.pop("model_type", name), **keys)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


PLAIN = {
    "qwen3_next", "gpt_neo", "bloom", "mpt", "falcon with alibi", "mamba", "mamba2", "falcon_mamba", "jamba", "bamba",
    "nemotron_h", "falcon_h1", "granitemoehybrid", "lfm2", "recurrent_gemma", "rwkv", "xlstm", "minimax", "openai-gpt",
    "qwen3_5_text", "roberta as decoder", "bart",
}  # fmt: skip
SAMPLES = {"padded": "cached", "even": "by length", "uncached": "uncached"}
"""What the page calls the probe's ways of decoding."""
UNCACHED = {"recurrent_gemma", "rwkv", "xlstm", "minimax", "openai-gpt", "roberta as decoder"}
BY_LENGTH = {"bart"}
REFUSED = {"bert", "xlm"}


def outcome(name: str) -> str:
    scores = "plain" if name in PLAIN else "packed"
    return f"{scores}, {'uncached' if name in UNCACHED else 'by length' if name in BY_LENGTH else 'cached'}"


OUTCOMES = {name: "refused" if name in REFUSED else outcome(name) for name in ARCHITECTURES}
"""What the probe finds; `tests/parity/test_architectures.py` compares each with the code, and the page with these."""

HEAD_OF_PAGE = """# Which causal language models, and how

Scores and samples are the model's own, for any causal language model of transformers. Two shortcuts save time where
they change no number. A probe decides when a model is loaded: a few small forward passes in fp32, each compared with
the plain forward pass of one text (1e-4 relative). The name of an architecture decides nothing. The list shows what
was tried.

- **packed**: completions of one prompt share one sequence. Each completion has its own positions and the model's own
  mask (causal, sliding, chunked), and does not see the others. Sequences longer than those tried at load are tried
  before their first use.
- **plain**: one sequence a completion, because packing would change the numbers (a recurrence, an ALiBi, a window
  inside the layers).
- **cached**: prompts of different lengths are continued in one batch, padded on the left. Beams and draws reorder the
  rows of the cache.
- **by length**: the same, for prompts of one length at a time, because padding on the left changes the numbers.
- **uncached**: there is no cache, or it cannot be reordered. So every step reads the whole text again: slow, and
  right.
- **refused**: the model sees what comes after a token, so it has no causal likelihood.

This page is written by `python -m tests.architectures`, from the outcomes that
`tests/parity/test_architectures.py` compares with the code.

| architecture | scores | samples |
|---|---|---|
"""


def table() -> str:
    rows = []
    for name, found in sorted(OUTCOMES.items()):
        scores, _, samples = found.partition(", ")
        rows.append(f"| {name} | {scores} | {samples or 'refused'} |\n")
    return HEAD_OF_PAGE + "".join(rows)


if __name__ == "__main__":
    from tests.conftest import ROOT

    (ROOT / "docs" / "architectures.md").write_text(table(), encoding="utf-8")
