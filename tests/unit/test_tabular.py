"""The tabular component: hand-made tables, and the language-model strategies on them."""

import math
from collections import Counter

import pytest
import torch

from sysdpo.components.tabular import Tabular
from sysdpo.errors import SettingError
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import DiverseBeam
from tests.systems import perturb

LOGITS = [[math.log(p) for p in row] for row in ([0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4])]


def table() -> Tabular:
    return Tabular(["a", "b", "c", "d"], {"x": ["p", "q"]}, LOGITS)


def test_log_probs_by_hand() -> None:
    log_probs = table().log_prob(["a", "d", "a"], [{"x": "p"}, {"x": "q"}, {"x": "q"}])
    assert log_probs.exp().tolist() == pytest.approx([0.5, 0.4, 0.1])


def test_rows_run_over_all_combinations_last_parent_fastest() -> None:
    logits = torch.zeros(6, 2)
    logits[4, 1] = 5.0  # x = second, y = second of three
    component = Tabular([0, 1], {"x": ["p", "q"], "y": [7, 8, 9]}, logits)
    assert component.log_prob([1], [{"y": 8, "x": "q"}]).item() == pytest.approx(-math.log1p(math.exp(-5)))
    assert component.log_prob([1], [{"y": 8, "x": "p"}]).item() == pytest.approx(-math.log(2))


def test_the_reference_is_the_initial_table_and_has_no_gradient() -> None:
    component = table()
    rows = [{"x": "p"}]
    assert component.log_ratio(["a"], rows).item() == 0.0
    perturb(component, 1.0)
    assert component.reference_log_prob(["a"], rows).item() == pytest.approx(math.log(0.5))
    assert component.log_ratio(["a"], rows).requires_grad
    assert list(dict(component.named_parameters())) == ["logits"]
    with pytest.raises(RuntimeError), component.reference():
        raise RuntimeError
    assert component.log_prob(["a"], rows).item() != pytest.approx(math.log(0.5), abs=1e-3)


def test_own_draws_follow_the_table_and_the_seed() -> None:
    rows = [{"x": "p"}, {"x": "q"}]
    drawn = table().sample(rows, 4000, [1, 2])
    shares = [Counter(values) for values in drawn]
    for share, expected in zip(shares, ([0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]), strict=True):
        for value, p in zip("abcd", expected, strict=True):
            assert abs(share[value] / 4000 - p) < 4 * math.sqrt(p * (1 - p) / 4000)
    assert table().sample(rows[1:], 4000, [2])[0] == drawn[1]


def test_strategies_of_language_models_work_on_a_table() -> None:
    rows = [{"x": "p"}, {"x": "q"}]
    beams = DiverseBeam(diversity_penalty=100.0)
    assert [sorted(values) for values in table().sample(rows, 2, [0, 0], beams)] == [["a", "b"], ["c", "d"]]
    assert [sorted(values) for values in table().sample(rows, 4, [0, 0], beams)] == [list("abcd")] * 2
    assert [sorted(values) for values in table().sample(rows, 7, [0, 0], beams)] == [list("abcd")] * 2
    one_group = DiverseBeam(diversity_penalty=0.0, groups=1)
    assert table().sample(rows, 3, [0, 0], one_group)[1] == ["d", "c", "b"]
    assert table().sample(rows, 1, [0, 0], MonteCarlo(temperature=0)) == [["a"], ["d"]]
    distinct = table().sample(rows, 50, [3, 4], MonteCarlo())
    assert [len(values) == len(set(values)) for values in distinct] == [True, True]
    nucleus = table().sample(rows[:1], 500, [3], MonteCarlo(top_p=0.7, distinct=False))[0]
    assert set(nucleus) == {"a", "b"}
    assert abs(nucleus.count("a") / 500 - 2 / 3) < 0.09


def test_refusals() -> None:
    with pytest.raises(SettingError, match="none twice"):
        Tabular(["a", "a"], {})
    with pytest.raises(SettingError, match=r"shape \(1, 2\); parents and values make it \(2, 2\)"):
        Tabular(["a", "b"], {"x": [0, 1]}, [[0.0, 0.0]])
    with pytest.raises(SettingError, match="unknown value 'e'"):
        table().log_prob(["e"], [{"x": "p"}])
    with pytest.raises(SettingError, match="unknown combination of parents"):
        table().log_prob(["a"], [{"x": "r"}])
    with pytest.raises(SettingError, match="did you mean 'x1'"):
        table().check_parents("c", ["x1"])
    with pytest.raises(SettingError, match="x='r'"):
        table().check_row({"x": "r"})
