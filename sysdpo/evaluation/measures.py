"""What is measured of a system's outputs: one class a table, on values alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

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
            baseline: the untrained system's, if `needs_baseline`, once for each row that is not repeated.

        Returns:
            `{metric: {"value", "se", "n"}}` with remarks such as the judge's name, and one record a row for
            `samples/evaluation.jsonl`; a PIL image in a record becomes a file, named by the record's `row`.
        """
        ...


class Labels(Protocol):
    """Who prefers one of several outputs of a row, where pairs are made while training goes on (`labels`)."""

    def scores(self, rows: Sequence[Values], samples: Sequence[Sequence[Values]]) -> tuple[list[list[float]], int]:
        """How good each output is; only outputs of one row have one scale. NaN: no opinion.

        Returns:
            A score for each of the samples of each row, and the calls of a judge or scorer that this took.
        """
        ...


class WinRates:
    """Table 2: how often `answer` beats the data set's chosen answer, and the untrained (prompted) system's.

    Args:
        judge: decides; none (or an empty config) leaves the figures out.
        answer: the variable that is judged.
        best_of: answers drawn for each row, of which the judge picks one (best-of-N sampling).
    """

    needs_baseline = True

    def __init__(self, judge: Judge | None, answer: str, best_of: int = 1) -> None:
        if best_of < 1:
            raise SettingError(f"evaluation.best_of={best_of}: must be at least 1.")
        self.judge, self.answer = judge or None, answer  # judge=none is an empty mapping to Hydra
        self.draws = best_of
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
        if self.draws > 1:
            rows = rows[:: self.draws]
            groups = [outputs[i : i + self.draws] for i in range(0, len(outputs), self.draws)]
            scores, _ = self.scores(rows, groups)
            outputs = [group[_best(own)] for group, own in zip(groups, scores, strict=True)]
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
        if hasattr(self.judge, "scores"):  # what a score is worth by itself, beside whom it beats
            own = [score if math.isfinite(score) else None for score in self.judge.scores(rows, answers)]
            known = np.array([score for score in own if score is not None])
            if len(known):
                error = float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else None
                metrics["mean_score"] = {"value": float(known.mean()), "se": error, "n": len(known)}
            for record, score in zip(records, own, strict=True):
                record["mean_score"] = score
        for name, texts in references.items():
            preferences = self.judge.preferences(rows, texts, answers)
            rate = win_rate(preferences)
            metrics[name] = {"value": rate.win_rate, "se": rate.standard_error, "n": rate.n_total}
            for record, preference in zip(records, preferences, strict=True):
                record[name] = 100 * (preference - 1)  # in the unit of the table
        return metrics, records

    def scores(self, rows: Sequence[Values], samples: Sequence[Sequence[Values]]) -> tuple[list[list[float]], int]:
        """See `Labels`: the judge's own scores, or its preference for each output over the row's first one."""
        judge: Any = self.judge
        if not judge:
            raise SettingError("labels: judge=none prefers nothing; choose a judge.")
        texts = [[str(output[self.answer]) for output in own] for own in samples]
        if hasattr(judge, "scores"):
            asked = [(row, text) for row, own in zip(rows, texts, strict=True) for text in own]
            given = iter(judge.scores([row for row, _ in asked], [text for _, text in asked]))
            return [[next(given) for _ in own] for own in texts], len(asked)
        compared = [(row, own[0], text) for row, own in zip(rows, texts, strict=True) for text in own[1:]]
        columns = zip(*compared, strict=True) if compared else ((), (), ())
        preferences = iter(judge.preferences(*map(list, columns)))
        return [[0.0, *(next(preferences) - 1.5 for _ in own[1:])] for own in texts], len(compared)


def _best(scores: Sequence[float]) -> int:
    """The first of the highest; one without an opinion is never above another."""
    return max(range(len(scores)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
