"""Why every component has its own copy of the base weights: what PEFT does where two adapters share one."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, use_cache=False
)
LORA = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)


def gradients(model: torch.nn.Module, name: str) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if f".{name}." in n and p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_adapters_of_one_base_have_their_own_gradients_only_without_checkpointing(checkpointing: bool) -> None:
    """One loss through both adapters, as a system has it, beside the same adapters on two copies.

    peft#1571: choosing an adapter freezes the others, so all are thawed here after each choice. peft#2832: what a
    backward pass computes anew, it computes under the adapter that was chosen last.
    """
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG)
    ids = torch.randint(0, CONFIG.vocab_size, (2, 7))
    shared = get_peft_model(copy.deepcopy(base), LORA, adapter_name="first")
    shared.add_adapter("second", LORA)
    if checkpointing:
        shared.gradient_checkpointing_enable({"use_reentrant": False})
    shared.train()
    total = torch.zeros(())
    for name in ("first", "second"):
        shared.set_adapter(name)
        assert {p.requires_grad for n, p in shared.named_parameters() if ".first." in n} == {name == "first"}
        for n, p in shared.named_parameters():
            p.requires_grad_("lora_" in n)
        total = total + shared(input_ids=ids, labels=ids).loss
    total.backward()
    apart = {}
    for name in ("first", "second"):
        own = get_peft_model(copy.deepcopy(base), LORA, adapter_name=name)
        own.load_state_dict({n: p for n, p in shared.state_dict().items() if n in own.state_dict()})
        own(input_ids=ids, labels=ids).loss.backward()
        right, found = gradients(own, name), gradients(shared, name)
        assert right
        wrong = max(float((right[n] - found.get(n, torch.zeros(()))).abs().max()) for n in right)
        apart[name] = wrong / max(float(g.abs().max()) for g in right.values())
    assert apart["second"] < 1e-5
    if checkpointing:
        assert apart["first"] > 0.5
    else:
        assert apart["first"] < 1e-5
