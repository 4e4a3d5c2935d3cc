"""The same values on a GPU as on a CPU."""

import pytest
import torch

from sysdpo.training.preference import Direct
from tests.systems import make_pairs_for, make_two_llm, perturb

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def test_margins_do_not_depend_on_the_device() -> None:
    system = make_two_llm()
    for name in system.components:
        perturb(system.component(name))
    pairs = make_pairs_for(system, 4)
    expected = Direct().compare(system, pairs, [0] * 4).margin
    margin = Direct().compare(system.to("cuda"), pairs, [0] * 4).margin
    torch.testing.assert_close(margin.cpu(), expected, rtol=1e-3, atol=1e-3)
