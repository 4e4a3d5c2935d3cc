"""What a judge of table 2 is: anything that compares two answers to an instruction, row by row."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sysdpo.errors import SettingError


class Judge(Protocol):
    """Compares each evaluated output with the reference answer to the same instruction."""

    @property
    def name(self) -> str:
        """What a table's caption says of the judge: enough to know which one it was."""
        ...

    def preferences(
        self, rows: Sequence[Mapping[str, Any]], references: Sequence[str], outputs: Sequence[str]
    ) -> list[float]:
        """One number per row in [1, 2]: 1 = the reference is preferred, 2 = the output; NaN = no opinion.

        Rows hold at least `x`, the instruction. Identical answers get exactly 1.5. A judge may have a method
        `check(rows)` as well: it refuses rows that it could not judge, before anything is trained.
        """
        ...


def check_rows(
    rows: Sequence[Mapping[str, Any]],
    references: Sequence[str],
    outputs: Sequence[str],
    columns: Sequence[str],
) -> None:
    """Refuse lists of unequal length and rows in which a column is missing or no text."""
    if not len(rows) == len(references) == len(outputs):
        raise SettingError(
            f"judge: {len(rows)} rows, {len(references)} references and {len(outputs)} outputs; give one of "
            "each per row."
        )
    check_columns(rows, columns)


def check_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Refuse rows in which a column is missing or no text."""
    for number, row in enumerate(rows):
        for column in columns:
            if not isinstance(row.get(column), str):
                raise SettingError(
                    f"judge: row {number} has no text in column {column!r} (columns: "
                    f"{', '.join(map(str, row))}); choose a data set that has it, or another judge."
                )


def check_temperature(temperature: float) -> float:
    """The temperature itself, refused unless finite and above 0."""
    if not 0 < temperature < math.inf:
        raise SettingError(f"judge.temperature: {temperature} is not a positive number; 1 reads scores as log-odds.")
    return temperature


def preference_from_scores(output: float, reference: float, temperature: float) -> float:
    """1 + sigma((output - reference) / temperature), after Bradley-Terry; NaN where a score is not finite."""
    if not (math.isfinite(output) and math.isfinite(reference)):
        return math.nan
    difference = (output - reference) / temperature
    return 1 + (1 + math.tanh(difference / 2)) / 2  # sigma by tanh: no overflow, exactly 1/2 at 0
