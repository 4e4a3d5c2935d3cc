"""Tiny real models, and small systems made of them, for all tests."""

from typing import Any

from sysdpo.components.text.language_model import LanguageModel, build_language_model
from sysdpo.components.tools.tool import Tool
from sysdpo.graph import SystemGraph
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.system import CompoundSystem, Pair

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # wide enough that tokens differ clearly in probability
}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}


def make_tiny(user: str = "{x}", **settings: Any) -> LanguageModel:
    """A two-layer llama with random weights and one token a byte; keys of its config go into `architecture`.

    Trainable, as `train_only` makes it, unless `train=False` leaves it as it was built.
    """
    train = settings.pop("train", True)
    architecture = {**ARCHITECTURE, **settings.pop("architecture", {})}
    defaults: dict[str, Any] = {
        "prompt": {"user": user},
        "pretrained": None,
        "weights": "random",
        "dtype": "float32",
        "device": "cpu",
        "lora": LORA,
        "max_new_tokens": 8,
        "generation": MonteCarlo(distinct=False),
    }
    component = build_language_model(**{**defaults, **settings}, architecture=architecture)
    if train:
        component.trainable(True)
    return component


def perturb(component: Any, scale: float = 0.1, seed: int = 0) -> None:
    """Move the trainable weights, as training would."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in component.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter.device)


TWO_LLM = {
    "x": {"role": "input"},
    "y": {"role": "intermediate", "component": "psi1", "parents": ["x"]},
    "z": {"role": "final", "component": "psi2", "parents": ["x", "y"]},
}
FIVE_NODES = {  # a shared parent, two branches, and a join that also reads the first node
    "x": {"role": "input"},
    "plan": {"role": "intermediate", "component": "a", "parents": ["x"]},
    "left": {"role": "intermediate", "component": "b", "parents": {"p": "plan"}},
    "right": {"role": "intermediate", "component": "b", "parents": {"p": "plan"}},
    "answer": {"role": "final", "component": "c", "parents": ["plan", "left", "right"]},
}
WITH_TOOL = {
    "x": {"role": "input"},
    "query": {"role": "intermediate", "component": "asker", "parents": ["x"]},
    "found": {"role": "intermediate", "component": "search", "parents": ["query"]},
    "answer": {"role": "final", "component": "reader", "parents": ["x", "found"]},
}


def make_two_llm(**settings: Any) -> CompoundSystem:
    components = {
        "psi1": make_tiny("{x}", seed=1, **settings),
        "psi2": make_tiny("{x}|{y}", seed=2, **settings),
    }
    return CompoundSystem(SystemGraph(TWO_LLM, components), components)


def make_five_nodes(**settings: Any) -> CompoundSystem:
    components = {
        "a": make_tiny("{x}", seed=1, **settings),
        "b": make_tiny("{p}", seed=2, **settings),
        "c": make_tiny("{plan}|{left}|{right}", seed=3, **settings),
    }
    return CompoundSystem(SystemGraph(FIVE_NODES, components), components)


def make_with_tool(**settings: Any) -> CompoundSystem:
    components = {
        "asker": make_tiny("{x}", seed=1, **settings),
        "search": Tool(lambda query: query[::-1], name="search"),
        "reader": make_tiny("{x}|{found}", seed=2, **settings),
    }
    return CompoundSystem(SystemGraph(WITH_TOOL, components), components)


def make_pairs_for(system: CompoundSystem, count: int, seed: int = 0) -> list[Pair]:
    """Pairs with a value for every variable, sampled from the system itself."""
    inputs = [{v.name: f"{v.name}{i} says {'ab' * (i % 3)}" for v in system.graph.inputs} for i in range(count)]
    sides = [system.generate(inputs, [seed + offset + i for i in range(count)]) for offset in (1_000, 2_000)]
    names = [v.name for v in system.graph.generated]
    return [Pair(i, inputs[i], *({name: side[i][name] for name in names} for side in sides)) for i in range(count)]
