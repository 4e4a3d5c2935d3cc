"""TRL's DPOTrainer on the joint run's own tokens and with its own likelihood term: the same footing for a baseline."""

from typing import Any

from datasets import Dataset
from trl import DPOTrainer


class TokenDPOTrainer(DPOTrainer):
    """TRL's trainer on rows of token ids, with the joint run's likelihood term beside its loss.

    Args:
        nll_weight: of the chosen side's summed negative log-likelihood over the reference's, as in `training.loop`.
    """

    def __init__(self, *, nll_weight: float = 0.0, **arguments: Any) -> None:
        self.nll_weight = nll_weight
        super().__init__(**arguments)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        if not self.nll_weight:
            return super()._compute_loss(model, inputs, return_outputs)
        outputs: list[Any] = []  # of the policy, then of the reference
        hook = model.register_forward_hook(lambda *called: outputs.append(called[-1]))
        try:
            loss = super()._compute_loss(model, inputs, return_outputs)
        finally:
            hook.remove()
        length = inputs["completion_mask"].shape[1] - 1
        policy, reference = (output.log_probs[:, -length:].sum(1).chunk(2)[0] for output in outputs)
        term = -self.nll_weight * (policy - reference.detach()).mean()
        return (loss[0] + term, *loss[1:]) if return_outputs else loss + term
