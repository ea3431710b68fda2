"""The `student.peers` block: networks that learn together with the student; and what does not go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ensemble_kd.config.base import Block
from ensemble_kd.config.growth import GrowthConfig
from ensemble_kd.config.models import ModelConfig, TransformerConfig, model_problems

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class PeersConfig(Block):
    """Networks that learn together: each learns from the others' predictions of the same batch (deep mutual
    learning, arXiv 1706.00384; with `refresh_steps` codistillation, arXiv 1804.03235)."""

    count: int = Field(2, ge=1, le=64)
    """Networks, the student among them; 1 is plain training."""
    models: list[ModelConfig] = []
    """Models of the others, `count - 1` of them, where they differ from `student.model`. These start from
    random weights and are never shipped."""
    weight: float | dict[str, Any] = 1.0
    """Weight of what is learned from the peers, the mean over them: a number or a schedule. It is added to
    alpha * soft + (1 - alpha) * hard, so that `student.alpha: 0` is mutual learning alone."""
    objective: str | dict[str, Any] = "kl"
    """The loss between a network and each of its peers, on logits: its name, or a block with `name` and its
    fields."""
    temperature: float = Field(1.0, gt=0, le=1000)
    """T of that loss, on both sides."""
    updates: Literal["simultaneous", "sequential"] = "simultaneous"
    """`simultaneous`: one step of all networks, from predictions made before it. `sequential`: one after the
    other, and a network that was updated predicts anew for those behind it, as in the paper."""
    refresh_steps: int | None = Field(None, ge=1)
    """Learn from copies of the peers that are made anew every so many steps (codistillation); null for the
    peers as they are."""

    @property
    def objective_fields(self) -> dict[str, Any]:
        return {"name": self.objective} if isinstance(self.objective, str) else self.objective


def peer_problems(config: Config) -> list[str]:
    """What does not fit between `student.peers` and the rest."""
    peers, student = config.student.peers, config.student
    if peers is None:
        return []
    problems = learner_problems(config, "student.peers")
    if peers.models and len(peers.models) != peers.count - 1:
        problems.append(
            f"student.peers.models: {len(peers.models)} models, but beside the student there are "
            f"{peers.count - 1} networks; name one for each, or set "
            f"student.peers.count={len(peers.models) + 1}"
        )
    for i, model in enumerate(peers.models):
        path = f"student.peers.models.{i}"
        problems += model_problems(path, model, config.data.kind)
        if isinstance(model, TransformerConfig) or getattr(model, "start", None) is not None:
            problems.append(
                f"{path}: a peer with a model of its own starts from random weights, this {model.name!r} "
                "from others; name another model, or leave models out: then all have the student's"
            )
    if getattr(student.model, "weights", None) == "teacher":
        problems.append(
            "student.peers: networks that all start from the teacher's weights have nothing to tell each "
            "other; set student.model.weights to pretrained or random"
        )
    if peers.refresh_steps is not None and peers.updates == "sequential":
        problems.append(
            "student.peers.updates: 'sequential', but with student.peers.refresh_steps the targets come from "
            "copies that no update changes; set updates to simultaneous, or refresh_steps to null"
        )
    return problems


def learner_problems(config: Config, path: str) -> list[str]:
    """What cannot be combined with several networks that learn together; `path` is their block."""
    student, sweep = config.student, config.sweep
    start = getattr(student.model, "start", None)
    wrong: list[tuple[str, bool, str]] = [
        ("student.replicas_per_member", student.replicas_per_member > 1, "set it to 1"),
        ("student.training.gradient_accumulation", student.training.gradient_accumulation > 1, "set it to 1"),
        ("student.quantization", student.quantization is not None, "leave it out; export can quantise"),
        ("student.terms", bool(student.terms), "leave them out"),
        ("student.online.logits", student.online.logits, "leave it to the store"),
        ("student.phases", bool(student.phases), "leave them out"),
        ("student.assistants", bool(student.assistants), "leave them out"),
        ("student.generations", student.generations > 1, "set it to 1"),
        # All would grow from one network, into the same.
        ("student.model.start", isinstance(start, GrowthConfig), "leave it out"),
        ("sweep.refit", sweep is not None and sweep.refit != "none", "set it to none"),
    ]
    return [
        f"{field}: does not go together with {path}; {remedy}, or leave {path} out"
        for field, bad, remedy in wrong
        if bad
    ]
