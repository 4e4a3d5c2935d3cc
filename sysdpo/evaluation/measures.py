"""What is measured of a system's outputs: one class a table, on values alone."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.base import Judge
from sysdpo.evaluation.win_rate import win_rate

Values = Mapping[str, Any]
"""Of variables, and what else the data know of an evaluation row, by name."""


class Measure(Protocol):
    """`conf/experiment/` names one under `evaluation`."""

    needs_baseline: bool
    draws: int
    """Outputs drawn for each evaluation row; they come one after another."""
    variables: Mapping[str, str]
    """The variables that it reads of an output, by the setting that names them."""

    def check(self, rows: Sequence[Values]) -> None:
        """Refuse evaluation rows that lack what will be looked at; called before anything is trained."""
        ...

    def measure(
        self, rows: Sequence[Values], outputs: Sequence[Values], baseline: Sequence[Values] | None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Compare outputs with what the data and the untrained system say.

        Args:
            rows: the evaluation rows, each `draws` times: inputs, `chosen`, and what a judge or scorer needs.
            outputs: the evaluated system's value of every variable, row by row.
            baseline: the untrained system's, if `needs_baseline`.

        Returns:
            `{metric: {"value", "se", "n"}}` with remarks such as the judge's name, and one record a row for
            `samples/evaluation.jsonl`; a PIL image in a record becomes a file, named by the record's `row`.
        """
        ...


class WinRates:
    """Table 2: how often `answer` beats the data set's chosen answer, and the untrained (prompted) system's.

    Args:
        judge: decides; none (or an empty config) leaves the figures out.
        answer: the variable that is judged.
    """

    needs_baseline = True
    draws = 1

    def __init__(self, judge: Judge | None, answer: str) -> None:
        self.judge, self.answer = judge or None, answer  # judge=none is an empty mapping to Hydra
        self.variables = {"answer": answer}

    def check(self, rows: Sequence[Values]) -> None:
        for number, row in enumerate(rows):
            if self.answer not in row["chosen"]:
                raise SettingError(
                    f"evaluation.answer={self.answer}: row {number} has no chosen value of that name to compare with; "
                    f"name another variable ({', '.join(map(str, row['chosen']))})."
                )
        if (check := getattr(self.judge, "check", None)) is not None:
            check(rows)

    def measure(
        self, rows: Sequence[Values], outputs: Sequence[Values], baseline: Sequence[Values] | None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        if baseline is None:
            raise SettingError("evaluation: win rates need the untrained system's answers.")
        answers = [str(row[self.answer]) for row in outputs]
        references = {
            "wr_chosen": [str(row["chosen"][self.answer]) for row in rows],
            "wr_prompted": [str(row[self.answer]) for row in baseline],
        }
        records = [
            {**output, **{f"reference_{name}": texts[i] for name, texts in references.items()}}
            for i, output in enumerate(outputs)
        ]
        metrics: dict[str, Any] = {}
        if not self.judge:
            return metrics, records
        metrics["judge"] = self.judge.name
        for name, texts in references.items():
            preferences = self.judge.preferences(rows, texts, answers)
            rate = win_rate(preferences)
            metrics[name] = {"value": rate.win_rate, "se": rate.standard_error, "n": rate.n_total}
            for record, preference in zip(records, preferences, strict=True):
                record[name] = 100 * (preference - 1)  # in the unit of the table
        return metrics, records
