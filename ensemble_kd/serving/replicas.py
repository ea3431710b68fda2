"""The model's side: replicas on Ray Serve, one thread each, that batch across requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from ensemble_kd.errors import EnsembleKDError
from ensemble_kd.local_ray import serve_on_loopback
from ensemble_kd.predict import load_predictor
from ensemble_kd.serving.answers import Question, Reply, Responder
from ensemble_kd.serving.app import Answer, Limits, UnavailableError
from ensemble_kd.serving.gather import Gatherer

NAME = "ensemble-kd"


MESSAGES = 2
"""Under way to one replica: the next one is there when it has answered the last."""


class Message(NamedTuple):
    """Questions that came together, and how much of a batch they are: at most a whole one."""

    questions: list[Question]
    rows: int


def _rows(waiting: list[Message]) -> int:
    return sum(message.rows for message in waiting)


class Replica:
    """Answers all requests that wait in one forward pass."""

    def __init__(self, folder: str, form: str, limits: Limits, trust: tuple[str, ...] = ()) -> None:
        serve_on_loopback()
        self.limits = limits
        predictor = load_predictor(Path(folder), form, threads=1, trust=trust)
        self.responder = Responder(predictor, limits.truncate, limits.max_batch)
        self._batched.set_max_batch_size(limits.max_batch)
        self._batched.set_batch_wait_timeout_s(limits.max_wait_ms / 1000)

    async def __call__(self, questions: list[Question]) -> list[Reply]:
        rows = sum(question.table.num_rows for question in questions)
        replies: list[Reply] = await self._batched(Message(questions, min(rows, self.limits.max_batch)))
        return replies

    @serve.batch(batch_size_fn=_rows)
    async def _batched(self, waiting: list[Message]) -> list[list[Reply]]:
        # In a thread: the next message arrives meanwhile, and health checks are answered.
        questions = [question for message in waiting for question in message.questions]
        replies = iter(await asyncio.to_thread(self.responder, questions))
        return [[next(replies) for _ in message.questions] for message in waiting]


def deploy(folder: Path, form: str, limits: Limits, replicas: int, trust: tuple[str, ...] = ()) -> Answer:
    """Start the replicas, without Ray's own HTTP proxy; returns once all of them can answer.

    Raises EnsembleKDError where they cannot be started.
    """
    quiet: Any = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(proxy_location="Disabled", logging_config=quiet)
    deployment = serve.deployment(
        name="model",
        num_replicas=replicas,
        max_ongoing_requests=limits.max_batch,  # as Serve wants; there are fewer messages
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": 1},  # from which Ray sets OMP_NUM_THREADS
        logging_config=quiet,
    )(Replica)
    try:
        handle = serve.run(
            deployment.bind(str(folder.resolve()), form, limits, trust), name=NAME, route_prefix=None
        )
    except (RuntimeError, RayServeException) as error:
        raise EnsembleKDError(f"the replicas did not start: {error}") from error

    async def send(questions: list[Question]) -> list[Reply]:
        try:
            replies: list[Reply] = await handle.remote(questions)
        except RayTaskError:  # our own failure inside a replica
            raise
        except (RayError, RayServeException) as error:
            raise UnavailableError("the replica that was to answer is gone; try again") from error
        return replies

    return Gatherer(send, MESSAGES * replicas, limits.max_batch)


def stop() -> None:
    """Remove the replicas."""
    serve.shutdown()
