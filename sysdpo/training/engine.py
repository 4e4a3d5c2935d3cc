"""The loss of one micro batch as a module, and torch's wrapper that adds up its gradients over all processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sysdpo import processes
from sysdpo.errors import SettingError
from sysdpo.losses import Link, preference_loss
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Comparison, Drawn, Objective


class MicroBatch(nn.Module):
    """Pairs to their losses: [B] with gradients, and the comparison behind them without.

    Args:
        nll_weight: of the chosen side's negative log-likelihood, beside the preference loss.
    """

    def __init__(
        self,
        system: CompoundSystem,
        objective: Objective,
        beta: float,
        link: Link,
        label_smoothing: float,
        nll_weight: float,
    ) -> None:
        super().__init__()
        self.system, self.objective = system, objective
        self.beta, self.link, self.label_smoothing, self.nll_weight = beta, link, label_smoothing, nll_weight

    def forward(
        self, pairs: Sequence[Pair], seeds: Sequence[int], drawn: Drawn | None = None
    ) -> tuple[Tensor, Comparison]:
        ahead = {} if drawn is None else {"drawn": drawn}
        compared = self.objective.compare(self.system, pairs, seeds, **ahead)
        loss = preference_loss(compared.margin, self.beta, self.link, self.label_smoothing)
        if self.nll_weight:
            loss = loss - self.nll_weight * compared.chosen_likelihood
        return loss, replace(
            compared, margin=compared.margin.detach(), chosen_likelihood=compared.chosen_likelihood.detach()
        )


def joined_gradients(micro: MicroBatch) -> nn.Module:
    """The module itself, or under ddp wrapped so that its last backward pass leaves all processes' mean gradient.

    Raises:
        SettingError: the components live on devices of several kinds.
    """
    if processes.layout() != "ddp":
        return micro
    kinds: dict[str, str] = {}
    for name, component in micro.system.components.items():
        for parameter in component.parameters():
            kinds.setdefault(parameter.device.type, name)
    if len(kinds) > 1:
        placed = ", ".join(f"{name} on {kind}" for kind, name in kinds.items())
        raise SettingError(
            f"distributed=ddp: the components are on devices of several kinds ({placed}); leave device=auto to all."
        )
    # routing and `when`: what no row of this process goes through has no gradient here
    return DistributedDataParallel(micro, find_unused_parameters=True)


@contextmanager
def gradients_kept(module: nn.Module, last: bool) -> Iterator[None]:
    """Inside, a backward pass adds to this process's own gradients; the last one of an update joins them."""
    wrapper: Any = module
    if last or not isinstance(module, DistributedDataParallel):
        yield
        return
    with wrapper.no_sync():
        yield
