"""Bars off a terminal are plain lines that say whose they are."""

import pytest

from sysdpo.progress import named, progress


def test_each_bar_is_a_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with named("Ablation [A]"):
        for _ in progress(range(2), "outer"):
            assert list(progress(range(3), "inner", total=5, initial=2)) == [0, 1, 2]
    printed = capsys.readouterr().err
    lines = printed.removesuffix("\n").split("\n")
    assert [line.partition("%")[0] for line in lines] == [
        "Ablation [A]: outer:   0",
        "Ablation [A]: inner:  40",
        "Ablation [A]: inner:  40",
    ]
    assert "".join(lines).isprintable()
