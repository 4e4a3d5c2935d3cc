"""The judge of verifiable instructions: answers are scored by rule, so no model's taste enters a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from sysdpo.evaluation.judges.base import check_columns, check_rows, check_temperature, preference_from_scores
from sysdpo.tasks.verifiable.score import score


class OracleJudge:
    """Soft preference 1 + sigma((score(output) - score(reference)) / temperature) between rule-based scores.

    Rows hold the rule as a JSON string in `oracle`. Scores lie in [0, 1]: at temperature 0.1 a perfect answer
    against one that fails gives 1.99995, and a tenth of a point more gives 1.73.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = check_temperature(temperature)

    @property
    def name(self) -> str:
        return f"oracle (temperature {self.temperature:g})"

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows without a rule, or with one that is none."""
        check_columns(rows, ["oracle"])
        for row in rows:
            score(row["oracle"], "")

    def preferences(
        self, rows: Sequence[Mapping[str, Any]], references: Sequence[str], outputs: Sequence[str]
    ) -> list[float]:
        """One preference [1, 2] per row; see `Judge`."""
        check_rows(rows, references, outputs, columns=["oracle"])
        return [
            preference_from_scores(score(rule, output), score(rule, reference), self.temperature)
            for rule, reference, output in zip((row["oracle"] for row in rows), references, outputs, strict=True)
        ]

    def scores(self, rows: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> list[float]:
        """The score of each output in [0, 1]."""
        check_rows(rows, outputs, outputs, columns=["oracle"])
        return [score(row["oracle"], output) for row, output in zip(rows, outputs, strict=True)]
