"""A part that lacks what the project will ask of it is refused where it is built, in one line."""

import pytest
from omegaconf import OmegaConf

from sysdpo.errors import SettingError
from sysdpo.evaluation.measures import Measure
from sysdpo.experiment.build import built
from sysdpo.training.objectives import Direct, Objective


def test_a_part_that_is_whole_is_built() -> None:
    config = OmegaConf.create({"objective": {"_target_": "sysdpo.training.objectives.Direct"}})
    assert built(config, "objective", Objective) == Direct()


def test_a_part_of_another_kind_is_refused_with_what_it_lacks() -> None:
    config = OmegaConf.create({"evaluation": {"_target_": "sysdpo.training.objectives.Direct"}})
    with pytest.raises(SettingError, match=r"^evaluation: Direct lacks draws, measure, needs_baseline, variables; see"):
        built(config, "evaluation", Measure)
