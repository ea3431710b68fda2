"""Tables of several requests to the bytes of their answers, in one forward pass."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ensemble_kd.inference.isolate import words
from ensemble_kd.inference.predictor import Predictor


@dataclass(frozen=True)
class Question:
    """One request's rows."""

    table: pa.Table
    keep_bad: bool = False
    """Bad rows are answered by nulls; otherwise the request has no answer if there is one."""
    bad: dict[int, str] = field(default_factory=dict)
    """Rows known to be bad already."""


@dataclass(frozen=True)
class Reply:
    """What becomes of a question."""

    body: bytes | None
    """JSON; None where rows are bad and not to be kept."""
    bad: dict[int, str]
    batch: tuple[int, int] | None = None
    """Rows and requests of the forward pass; the first of its requests carries them, so each counts once."""
    failed: str | None = None
    """What the model itself failed with; there is no answer then."""


TEXTS = 16
"""Texts of one step, of about one length: 64 at once, padded to the longest of them, took twice as long."""


class Responder:
    """Answers questions together."""

    def __init__(self, predictor: Predictor, truncate: bool, batch_size: int) -> None:
        self.predictor, self.truncate = predictor, truncate
        self.batch_size = min(TEXTS, batch_size) if predictor.info.kind == "text" else batch_size
        self._shown = (predictor.class_names, predictor.threshold)
        self._row, self._null = predictor.target.row_format(*self._shown)

    def __call__(self, questions: list[Question]) -> list[Reply]:
        """A reply for each, in their order. One that raises, which no row of it explains, fails alone."""
        try:
            return self._together(questions)
        except Exception as error:  # the net at the edge: other clients' questions travel with it
            if len(questions) == 1:
                return [Reply(None, {}, failed=words(error))]
            return [self([question])[0] for question in questions]

    def _together(self, questions: list[Question]) -> list[Reply]:
        tables = [question.table for question in questions]
        found = self.predictor.answer(pa.concat_tables(tables), self.batch_size, self.truncate)
        replies, first = [], 0
        for question in questions:
            rows = range(first, first + question.table.num_rows)
            bad = dict(question.bad)
            for i, row in enumerate(rows):
                problem = found.problems[row]
                if problem is not None:
                    bad.setdefault(i, problem)
            batch = (len(found.problems), len(questions)) if first == 0 else None
            kept = question.keep_bad or not bad
            part = found.probabilities[rows.start : rows.stop]
            replies.append(Reply(self._body(part, bad, question.keep_bad) if kept else None, bad, batch))
            first = rows.stop
        return replies

    def _body(self, probabilities: np.ndarray, bad: dict[int, str], with_problems: bool) -> bytes:
        """JSON of (N, C) float32 answers."""
        rows = []
        for i, values in enumerate(self.predictor.target.row_values(probabilities, *self._shown)):
            if i in bad:
                rows.append(f'{self._null},"problem":{json.dumps(bad[i])}}}')
            else:
                rows.append(self._row % values + (',"problem":null}' if with_problems else "}"))
        return ('{"rows":[' + ",".join(rows) + "]}").encode()
