"""Who is compared: a script each, what it installs, and what it has not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Rival:
    """One row of the table."""

    name: str
    script: Path
    """User code, started as SCRIPT FOLDER SEED RESULT (`given.read`)."""
    teacher: str
    """How the script comes by what the teacher says: stored, or running in every step."""
    lacks: str
    """What it cannot do, of: several teachers, any T from what was stored, a sweep without teacher passes,
    specialists, resume in the same bits."""
    requires: tuple[str, ...] = ()
    """What pip installs into an environment of its own; () for the running one."""
    package: str | None = None
    """Whose version is told."""
    alone: bool = False
    """Whether its environment sees none of the running one's packages: it wants older ones."""


LIMIT, OURS = "bare loop", "ensemble_kd"
RIVALS = (
    Rival(LIMIT, HERE / "with_nothing.py", "in memory", "everything but the step", package="torch"),
    Rival(OURS, HERE / "with_ensemble_kd.py", "stored", "language models", package="ensemble_kd"),
    Rival(
        "transformers.Trainer",
        HERE / "with_trainer.py",
        "runs",
        "the loss is yours to write; nothing is stored; no sweep, no specialists",
        ("accelerate",),
        "transformers",
    ),
    Rival(
        "TextBrewer",
        HERE / "with_textbrewer.py",
        "in memory, whole batches",
        "batches never mix again; no sweep, no specialists, no resume",
        ("textbrewer==0.2.1.post1",),
        "textbrewer",
    ),
    Rival(
        "torchdistill",
        HERE / "with_torchdistill.py",
        "runs",
        "one teacher module; nothing is stored; no sweep, no specialists; the epochs' loop is yours to write",
        ("torchdistill==1.1.5",),
        "torchdistill",
    ),
    Rival(
        "Keras Distiller",
        HERE / "with_keras.py",
        "runs",
        "Keras models alone; one teacher model; nothing is stored; no sweep, no specialists",
        ("keras==3.15.1",),
        "keras",
    ),
    Rival(
        "ModelOpt",
        HERE / "with_modelopt.py",
        "runs",
        "one teacher module; nothing is stored; no sweep, no specialists; the loop is yours to write",
        ("nvidia-modelopt==0.47.0",),
        "nvidia-modelopt",
    ),
    Rival(
        "AutoGluon distill()",
        HERE / "with_autogluon.py",
        "its own, stored in the process",
        "teachers of yours; T; specialists; its students alone; resume",
        ("autogluon.tabular==1.6.3", "lightgbm==4.7.0"),
        "autogluon.tabular",
        alone=True,
    ),
)

OURS_TEXTS = "ensemble_kd, table"
TEXT_RIVALS = (
    Rival(
        OURS_TEXTS,
        HERE / "texts_with_ensemble_kd.py",
        "logits, stored",
        "language models",
        package="ensemble_kd",
    ),
    Rival(
        "Model2Vec",
        HERE / "texts_with_model2vec.py",
        "vectors of word pieces",
        "a teacher of yours; soft targets: its classifier learns from labels; no sweep, no specialists",
        ("model2vec[distill]==0.10.0",),
        "model2vec",
    ),
    Rival(
        "ensemble_kd, two blocks",
        HERE / "texts_with_our_transformer.py",
        "logits, stored",
        "language models",
        package="ensemble_kd",
    ),
    Rival(
        "sentence-transformers",
        HERE / "texts_with_sentence_transformers.py",
        "vectors of texts, in memory",
        "soft targets: its classifier learns from labels; one teacher; no sweep, no specialists",
        package="sentence-transformers",
    ),
)
