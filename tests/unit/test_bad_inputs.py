"""Generated bad inputs: each is read or refused in one line (`make faults` tries more of them)."""

import pytest

from scripts.bad_inputs import KINDS, _tried


@pytest.mark.parametrize("kind", KINDS)
def test_bad_inputs_are_read_or_refused(kind: str) -> None:
    found = _tried(kind, 60)
    assert found.remarks == []
    assert found.tried >= 50
    assert found.refused >= 20
    assert found.tried == found.refused + found.read
