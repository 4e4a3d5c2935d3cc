"""Who takes what of n things among several processes, and what is refused before they meet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysdpo import processes
from sysdpo.devices import resolve_device
from sysdpo.errors import SettingError

SIZES = st.integers(1, 9)


def of_each(number: int, work: str, n: int, size: int) -> list[list[range]]:
    """`rounds` or `turns` as each of `number` processes sees them."""
    found = []
    for rank in range(number):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "count", lambda: number)
            patch.setattr(processes, "rank", lambda rank=rank: rank)
            found.append(getattr(processes, work)(n, size))
    return found


@given(n=st.integers(0, 40), size=SIZES)
def test_one_process_takes_batches_of_the_size_asked_for(n: int, size: int) -> None:
    expected = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    assert [list(part) for part in processes.rounds(n, size)] == expected
    assert [list(part) for part in processes.turns(n, size)] == expected


@given(number=st.integers(1, 6), n=st.integers(0, 40), size=SIZES)
def test_shares_of_an_update_are_even_and_end_together(number: int, n: int, size: int) -> None:
    parts = of_each(number, "rounds", n, size)
    dealt = [[i for part in own for i in part] for own in parts]
    assert dealt == [list(range(n))[rank::number] for rank in range(number)]
    assert len({len(own) for own in parts}) == 1
    shares = [sum(map(len, own)) for own in parts]
    assert max(shares) - min(shares) <= 1
    for own in parts:
        assert all(len(part) <= size for part in own)
        filled = [bool(part) for part in own]
        assert filled == sorted(filled)  # gradients are joined in the last round, where every process has a part


@given(number=st.integers(1, 6), n=st.integers(0, 40), size=SIZES)
def test_turns_put_together_are_in_order_and_leave_nobody_idle(number: int, n: int, size: int) -> None:
    parts = of_each(number, "turns", n, size)
    assert len({len(own) for own in parts}) == 1
    assert [i for turn in zip(*parts, strict=True) for part in turn for i in part] == list(range(n))
    busy = sum(any(own) for own in parts)
    assert busy == number or busy * max((len(p) for own in parts for p in own), default=1) >= n
    assert all(len(part) <= size for own in parts for part in own)


def test_a_layout_needs_torchrun_and_torchrun_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes.join("none")
    assert processes.count() == 1
    with pytest.raises(SettingError, match=r"distributed=ddp: this is a single process; start .* torchrun"):
        processes.join("ddp")
    with pytest.raises(SettingError, match="unknown 'dpp'; did you mean 'ddp'"):
        processes.join("dpp")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(SettingError, match="distributed=none: 8 processes have been started for this run"):
        processes.join("none")


def test_one_gpu_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("cuda:0").index == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="device=cuda:0: each of the 2 processes has a GPU of its own"):
        resolve_device("cuda:0")
    assert resolve_device("cuda").index is None


def test_alone_nothing_is_exchanged() -> None:
    assert processes.each("a") == ["a"]
    assert processes.joined([1, 2]) == [1, 2]
    assert processes.summed({"loss": 1.0}) == {"loss": 1.0}
    assert processes.by_first(lambda: 3) == 3
    assert processes.unsaid("a line")
    assert processes.unsaid("a line")
