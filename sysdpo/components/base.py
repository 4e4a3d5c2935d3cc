"""The contract of a component: one conditional distribution p(v | Pa(v)) and its frozen reference (eq. 3)."""

import pickle
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Value = Any
"""What one variable holds in one row: a text, an image tensor, a label."""

Parents = Sequence[Mapping[str, Value]]
"""One mapping {parent name: value} a row."""

Likelihood = Literal["exact", "bound", "constant"]

Quantity = Literal["log_prob", "reference_log_prob", "log_ratio"]


def identity(value: Value) -> Hashable:
    """A key that two values share exactly where they are equal, whatever they are made of."""
    if isinstance(value, Tensor):
        return (
            "tensor",
            str(value.dtype),
            tuple(value.shape),
            value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, Mapping):
        return ("mapping", *sorted((str(name), identity(each)) for name, each in value.items()))
    if isinstance(value, list | tuple):
        return ("list", *map(identity, value))
    return value if isinstance(value, Hashable) else (type(value).__name__, pickle.dumps(value))


class TokenSampler(Protocol):
    """How a language model's texts are drawn; `sysdpo.sampling` has the strategies."""

    @property
    def distinct(self) -> bool:
        """Whether the texts of one prompt are promised to differ."""
        ...

    def draw(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        n: int,
        seeds: Sequence[int],
        max_new_tokens: int,
        eos_token_id: int | Sequence[int],
        pad_token_id: int,
    ) -> list[list[list[int]]]:
        """At most `n` completions, as token ids, for each of the B left-padded prompts [B, T]."""
        ...


class Component(nn.Module):
    """p(v | Pa(v)), drawn by one model or tool, together with the reference it must not drift far from.

    `likelihood` says what `log_ratio` is: `exact` (log-probabilities can be evaluated), `bound` (only a bound on
    the log-ratio is known, as for a diffusion model) or `constant` (a deterministic tool: factor 1, log-ratio 0).
    """

    likelihood: Likelihood = "exact"

    @property
    def domain(self) -> Sequence[Value] | None:
        """All values that can be drawn, where they can be listed."""
        return None

    def check_parents(self, component: str, parents: Collection[str]) -> None:
        """Refuse, with one line, names of parents that this component cannot work with."""

    draws: Literal["text", "image", "any"] = "any"
    """What its values are; data of another kind are refused before training."""

    @property
    def longest(self) -> int:
        """The most tokens that a text it draws may take; 0 where that is not known."""
        return 0

    def check_row(self, parents: Mapping[str, Value], drafts: Mapping[str, int] | None = None) -> None:
        """Refuse, with one line, a row that cannot be scored (a prompt longer than the context).

        Args:
            drafts: of the parents that are still to be drawn (empty in `parents`), the most tokens each may take.
        """

    def check_input(self, name: str, value: Value) -> None:
        """Refuse, with one line, a value of the data that this component cannot read."""

    def same(self, value: Value, other: Value) -> bool:
        """Whether two values are one to this component (texts that the limit cuts to the same tokens)."""
        return bool(value == other)

    def check_value(self, value: Value) -> None:
        """Refuse, with one line, a value that cannot be scored (an image of another size)."""

    def rehearse_saving(self) -> None:
        """Refuse, before training, trained weights that could not be saved after it."""

    def sample(
        self, parents: Parents, n: int, seeds: Sequence[int], sampler: TokenSampler | None = None
    ) -> list[list[Value]]:
        """Draw up to `n` values for each of the B rows.

        Args:
            parents: B rows of parent values.
            n: values wanted for each row.
            seeds: one seed a row; a row's draws depend on its own seed only, not on its neighbours.
            sampler: a sampling strategy of `sysdpo.sampling`; None takes the component's own generation setting.

        Returns:
            B lists. A strategy that promises distinct values may return fewer than `n`, never a repeated one.
        """
        raise NotImplementedError

    def log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        """log p(value | parents) under the current weights, in nats: [B], fp32, differentiable."""
        raise NotImplementedError

    _followed: Mapping[str, Tensor] | None = None

    def follow(self, weights: Mapping[str, Tensor] | None) -> None:
        """From now on the reference has these in place of the trainable weights they name; None: as before training."""
        self._followed = weights

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the named weights have these values; nothing is copied, so gradients in the making stay right."""
        own = {name: parameter for name, parameter in self.named_parameters() if name in weights}
        before = {name: parameter.data for name, parameter in own.items()}
        try:
            for name, parameter in own.items():
                parameter.data = weights[name]
            yield
        finally:
            for name, parameter in own.items():
                parameter.data = before[name]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the component computes with its reference weights; trainability is restored on the way out,
        also after an exception. A component without parameters has nothing to switch."""
        yield

    def log_ratio(self, values: Sequence[Value], parents: Parents, noise: Sequence[int] | None = None) -> Tensor:
        """log p(value | parents) - log p_ref(value | parents), in nats: [B], fp32, differentiable.

        Args:
            values: B values.
            parents: B rows of parent values.
            noise: one seed a row for components that estimate the ratio with random draws: rows with the same
                seed see the same draws. Exact components ignore it.
        """
        return self.log_prob(values, parents) - self.reference_log_prob(values, parents)

    @torch.no_grad()
    def reference_log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        """log p_ref(value | parents), in nats: [B], fp32, without gradient."""
        with self.reference():
            return self.log_prob(values, parents)

    def forward(
        self, quantity: Quantity, values: Sequence[Value], parents: Parents, noise: Sequence[int] | None = None
    ) -> Tensor:
        """Any of the three quantities: [B]. Whatever wraps the module (FSDP2's hooks) sees every computation.

        Without values it is empty, but a function of all trained weights: where processes share the weights out, each
        takes part in every computation.
        """
        if not values:
            nothing = torch.zeros(0, device=next((p.device for p in self.parameters()), None))
            learned = [p for p in self.parameters() if p.requires_grad and quantity != "reference_log_prob"]
            return sum((p.sum() * nothing for p in learned), nothing)
        if quantity == "log_ratio":
            return self.log_ratio(values, parents, noise)
        if quantity == "log_prob" and self.is_trainable:
            return self.log_prob(values, parents)
        return self.reference_log_prob(values, parents)  # weights that are never updated: both agree

    def describe(self) -> str:
        """What a log should say of the component before it is trained; empty if nothing."""
        return ""

    def diagnostics(self) -> Mapping[str, Sequence[float]]:
        """What the component observed since it was last asked, value by value; the log has the mean of each name."""
        return {}

    def forget(self) -> None:
        """Drop numbers that are remembered of earlier calls: they carry the rounding of the batches they came in."""

    @property
    def is_trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def trainable(self, train: bool) -> None:
        """Switch the component's own trainable weights on or off (`train: [...]` in the config)."""
        for parameter in self.parameters():
            parameter.requires_grad_(train)

    def save(self, folder: str) -> None:
        """Write the trained weights in the layout of the library they belong to (PEFT, diffusers)."""
        raise NotImplementedError

    def restore(self, folder: str) -> None:
        """Take the trained weights that `save` wrote; the reference stays as it is."""
        raise NotImplementedError

    # ---- what a plan and a benchmark ask: a component without networks of its own has nothing to answer ------------

    @property
    def unit(self) -> Literal["tokens", "images"] | None:
        """What the model's work is counted in; None where no model draws the values."""
        return None

    @property
    def most_at_once(self) -> int | None:
        """Values that are drawn side by side at most; None: as many as are asked for."""
        return None

    def networks(self) -> dict[str, nn.Module]:
        """All networks by name, frozen helpers (VAE, text encoders) included."""
        return {}

    def frozen_copies(self) -> list[nn.Module]:
        """Networks kept beside the policy as its reference; none where an adapter is switched off."""
        return []

    @property
    def tokenizer(self) -> str:
        """Whose tokens are counted; empty where there are none."""
        return ""

    def token_embedding(self) -> nn.Module | None:
        """The module that every token of a forward pass goes through."""
        return None

    def amount(self, value: Value) -> int:
        """How much of its unit the component drew with this value."""
        return 0

    def prompt_tokens(self, parents: Mapping[str, Value]) -> int:
        """Tokens of what the model is asked; 0 where it reads no text."""
        return 0

    def made_up_text(self, key: int, tokens: int) -> str | None:
        """A text of that many tokens of the component's own, other than that of another key; None: it reads none."""
        return None

    def made_up_value(self, key: int, tokens: int) -> Value | None:
        """A value that the component could draw, a text of that many tokens; None: it has to be asked (a tool)."""
        return self.domain[key % len(self.domain)] if self.domain is not None else None

    def take_lengths(self, frame: int, tokens: int | None) -> None:
        """From now on, take made-up values by their lengths alone, so that a plan needs no data and no tokenizer.

        Args:
            frame: tokens of a prompt beside those of the parents' values.
            tokens: of each text that is scored, if that is less than may be drawn; None: as many as may be drawn.
        """

    def drawing(self, n: int, prompt: int) -> Iterator[int]:
        """Do each kind of work once that it takes to draw `n` values side by side, from prompts of that many tokens.

        Yields:
            After each kind, how often a real draw does it; 0 for work that only prepares the next kind (a full cache).
        """
        return iter(())
