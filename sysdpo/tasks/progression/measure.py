"""Table 1: what is measured of a system that draws three images along an attribute."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from sysdpo import processes
from sysdpo.errors import SettingError, nearest
from sysdpo.evaluation.measures import Values
from sysdpo.tasks.progression.sequences import ScoredSequence, Scorer, score_sequences, strip


class Progression:
    """Table 1: preference score q (eq. 8) and order consistency of the images of `answer`, by attribute.

    Args:
        scorer: attribute levels of images.
        answer: the variable that holds a list of three images; an empty list is a text that did not parse.
        captions: the variable that holds their captions. No scorer of an attribute sees whether they still depict the
            place that was asked for, so where rows name one, the share of captions that do is measured beside q.
        best_of: sequences drawn for each row, of which the one with the highest q counts (best-of-N sampling).
    """

    needs_baseline = False

    def __init__(self, scorer: Scorer, answer: str, captions: str | None = None, best_of: int = 1) -> None:
        if best_of < 1:
            raise SettingError(f"evaluation.best_of={best_of}: must be at least 1.")
        self.scorer, self.answer, self.captions, self.draws = scorer, answer, captions, best_of
        self.variables = {"answer": answer} | ({"captions": captions} if captions is not None else {})

    def check(self, rows: Sequence[Values]) -> None:
        known = list(self.scorer.attributes)
        for number, row in enumerate(rows):
            if row.get("attribute") not in known:
                raise SettingError(f"row {number}: attribute: {nearest(str(row.get('attribute')), known)}")

    def measure(
        self, rows: Sequence[Values], outputs: Sequence[Values], baseline: Sequence[Values] | None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        scored = self._scored([(str(r["attribute"]), o[self.answer]) for r, o in zip(rows, outputs, strict=True)])
        groups = [range(i, i + self.draws) for i in range(0, len(rows), self.draws)]
        best = [max(group, key=lambda i: scored[i].score) for group in groups]
        numbers = [self._numbers(rows[i], outputs[i], scored[i]) for i in best]
        attributes = [str(rows[i]["attribute"]) for i in best]
        metrics: dict[str, Any] = _means(numbers)
        metrics["attributes"] = {
            name: _means([own for own, attribute in zip(numbers, attributes, strict=True) if attribute == name])
            for name in dict.fromkeys(attributes)
        }
        metrics["scorer"] = self.scorer.name
        records = [
            self._record(n, rows[i], outputs[i], scored[i]) | own
            for n, (i, own) in enumerate(zip(best, numbers, strict=True))
        ]
        return metrics, records

    def scores(self, rows: Sequence[Values], samples: Sequence[Sequence[Values]]) -> tuple[list[list[float]], int]:
        """See `Labels`: q of each sequence."""
        asked = [(str(row["attribute"]), o[self.answer]) for row, own in zip(rows, samples, strict=True) for o in own]
        scored = iter(self._scored(asked))
        return [[next(scored).score for _ in own] for own in samples], len(asked)

    def _scored(self, asked: Sequence[tuple[str, Any]]) -> list[ScoredSequence]:
        """Of attributes and the images that answer them; each process scores its share."""
        own = [asked[i] for i in processes.share(len(asked))]
        images, attributes = [images for _, images in own], [attribute for attribute, _ in own]
        return processes.joined(score_sequences(self.scorer, images, attributes))

    def _numbers(self, row: Values, output: Values, scored: ScoredSequence) -> dict[str, float]:
        """q, and in percent: in order or not; a text that did not parse (scored worst, never in order) or one that did;
        captions that name the place."""
        numbers = {
            "preference_score": scored.score,
            "order_consistency": 100.0 * scored.is_ordered,
            "parse_failures": 100.0 * (not scored.is_parsed),
        }
        if self.captions is not None and row.get("place"):
            named = [str(row["place"]).lower() in caption.lower() for caption in output[self.captions]]
            numbers["place_named"] = 100.0 * mean(named) if named else 0.0
        return numbers

    def _record(self, number: int, row: Values, output: Values, scored: ScoredSequence) -> dict[str, Any]:
        """Inputs, texts, levels and the picture of one row; values that are lists of images are left to the strip."""
        images = output[self.answer]
        record: dict[str, Any] = {"row": number, **row}
        record |= {name: value for name, value in output.items() if name != self.answer}
        return record | {"levels": scored.levels, "picture": strip(images) if images else None}


def _means(numbers: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The means of the numbers that every sequence has."""
    return {name: _mean([row[name] for row in numbers]) for name in numbers[0] if all(name in row for row in numbers)}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its standard error (sd with ddof 1, over the root of n)."""
    n = len(values)
    return {"value": mean(values), "se": stdev(values) / math.sqrt(n) if n > 1 else None, "n": n}
