"""A class made in Python has the limits that a config has."""

import math
from typing import Any

import pytest

from sysdpo.components.image.denoising import Bound
from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.endpoint import ChatEndpoint
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.training.loop import TrainingSettings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingSettings(steps=0), r"training\.steps=0: must be at least 1"),
        (lambda: TrainingSettings(steps=2.5), r"training\.steps=2\.5: must be a whole number"),  # type: ignore[arg-type]
        (lambda: TrainingSettings(patience=0, validate_every=1), r"training\.patience=0: must be at least 1"),
        (lambda: TrainingSettings(max_grad_norm=0.0), r"training\.max_grad_norm=0\.0: must be greater than 0"),
        (lambda: TrainingSettings(learning_rate=math.nan), r"training\.learning_rate=nan: must be a finite number"),
        (lambda: TrainingSettings(label_smoothing=0.5), r"training\.label_smoothing=0\.5: must be less than 0\.5"),
        (lambda: TrainingSettings(label_smoothing=0.1, link="ipo"), "only the sigmoid link"),
        (lambda: TrainingSettings(link="sigmoyd"), r"training\.link: unknown 'sigmoyd'; did you mean 'sigmoid'"),  # type: ignore[arg-type]
        (lambda: MonteCarlo(top_p=0.0), r"top_p=0\.0: must be greater than 0"),
        (lambda: MonteCarlo(temperature=-0.1), r"temperature=-0\.1: must be at least 0"),
        (lambda: Bound(draws=0), r"bound\.draws=0: must be at least 1"),
        (lambda: Bound(reduction="man"), r"bound\.reduction: unknown 'man'; did you mean 'mean'"),  # type: ignore[arg-type]
        (lambda: ChatEndpoint("http://h/v1", timeout_s=0), r"endpoint\.timeout_s=0: must be greater than 0"),
        (lambda: ChatEndpoint("http://h/v1", concurrency=True), r"endpoint\.concurrency=True: must be a whole number"),
    ],
)
def test_classes_and_configs_have_the_same_limits(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_what_may_be_left_out_may_be_left_out() -> None:
    assert TrainingSettings(patience=None, keep_checkpoints=None).patience is None
    assert MonteCarlo(temperature=0).temperature == 0  # greedy
