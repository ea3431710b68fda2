"""Runs the clock while the package's own loop trains the distilled student: not the baselines beside it.

What the loop does between epochs, evaluation on validation rows and a checkpoint, is in it; and so is the
transformer's pass over the word pieces, where a student's table starts from them.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import ensemble_kd.train.member as member
from benchmarks.peers.given import Given
from ensemble_kd.stages import vectors


def attach(given: Given) -> None:
    original = member.train_epochs

    def timed(learner: Any, *args: Any, **options: Any) -> Generator[dict[str, float], None, Any]:
        epochs = original(learner, *args, **options)
        if learner.loss.alpha == 0:
            return (yield from epochs)
        while True:
            with given.clock():
                try:
                    entry = next(epochs)
                except StopIteration as end:
                    return end.value
            yield entry

    pieces = vectors.piece_states

    def timed_pieces(*args: Any) -> Any:
        with given.clock():
            return pieces(*args)

    member.train_epochs = timed
    vectors.piece_states = timed_pieces  # type: ignore[assignment]
