"""The blocks of the networks, told apart by `name`; and what is wrong with one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ensemble_kd.config.base import CALLABLE, LAYER_CHOICES, Block
from ensemble_kd.config.data import DataConfig
from ensemble_kd.config.families import Family
from ensemble_kd.config.image_models import CNNConfig, MLPConfig, NetworkConfig, WideShallowConfig
from ensemble_kd.config.resnet import ResNetConfig
from ensemble_kd.config.text_models import BagConfig, BiLSTMConfig, TextCNNConfig
from ensemble_kd.secret_options import remember


class TreesConfig(NetworkConfig):
    """Boosted trees for rows of numbers, for teachers: fitted in one go, without epochs, on labelled rows.

    Friedman, Annals of Statistics 29, 2001, in scikit-learn's histogram form. Of `training` they read
    `class_weights` alone.
    """

    kinds: ClassVar[tuple[str, ...]] = ("numeric",)
    builder: ClassVar[str] = "trees:build_trees"
    name: Literal["trees"] = "trees"
    """`trees`"""
    rounds: int = Field(200, ge=1, le=10000)
    """Rounds of boosting, each of one tree per class; those after the best on validation rows are dropped."""
    leaves: int = Field(31, ge=2, le=1024)
    """Most leaves of a tree."""
    learning_rate: float = Field(0.1, gt=0, le=1)
    """Share of each tree's answer that counts."""
    features: float = Field(0.5, gt=0, le=1)
    """Share of the columns that a split chooses from, drawn by the member's seed."""


class TransformerConfig(Block):
    """A model of the transformers library: text or image classifier, pretrained or from a configuration."""

    later: ClassVar[frozenset[str]] = frozenset({"pooling"})
    name: Literal["transformer"] = "transformer"
    """`transformer`"""
    source: str | None = None
    """Hub name, local folder, or `package:MODULE/FOLDER` inside an installed Python package."""
    architecture: dict[str, Any] = {}
    """Fields of the transformers configuration: the changes to that of `source` (or of the teacher), or,
    without one, all that differ from the defaults of `model_type`."""
    weights: Literal["auto", "pretrained", "teacher", "random"] = "auto"
    """What to start from: the weights of `source`, those of the run's best teacher (students only), or random
    ones; `auto`: pretrained where there is a source."""
    layers: list[Annotated[int, Field(ge=0)]] | Annotated[str, Field(pattern=LAYER_CHOICES)] | None = None
    """Blocks taken over from what it starts from, counted from 0: a list, `first:K`, `last:K`,
    `every_second`, or `distilbert` (0, 2, 4, 7, 9, 11); null for all, or for the first so many as
    `architecture` asks for."""
    fold_token_types: bool = False
    """Add the token-type embedding of the first text to the word embeddings and drop the table; single
    texts."""
    pooling: Literal["auto", "cls", "mean", "max"] = "auto"
    """What the classifier of a text model reads. `cls`: the library's own one, the first token's state, by
    way of a pooler where the model has one (the last token's in models of the GPT kind). `mean`, `max`: of
    all tokens' states, then one linear layer. `auto`: as the teacher that it starts from, or as a source in
    the layout of sentence-transformers says; else `cls`."""
    pooler: Literal["keep", "fresh"] = "keep"
    """Whether the layer between encoder and classifier is taken over or drawn anew."""
    vocabulary: Literal["all", "used"] | Annotated[int, Field(ge=8)] = "all"
    """Word pieces that a student keeps; the others become the unknown piece. `used`: those that occur in the
    transfer set and the corpora of its phases; a number: so many of these, the transfer set's first."""
    pieces: list[int] | None = None
    """Numbers of the word pieces kept; filled in by `vocabulary: used`."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Probability of dropping a hidden unit or an attention weight; null for what the configuration says."""
    trust_remote_code: bool = False
    """Whether code that comes with `source` may run."""


class CustomModelConfig(Block):
    """A network of the user's."""

    later: ClassVar[frozenset[str]] = frozenset({"public_options"})
    name: Literal["custom"] = "custom"
    """`custom`"""
    callable: str = Field(pattern=CALLABLE)
    """`module:callable`; called with num_classes, input_shape and `options`, returns a torch Module."""
    options: dict[str, Any] = {}
    """Keyword arguments for the callable. What is named like a secret (`api_key`, `token`, `password`) is
    used and never written, so that a model folder cannot be built from."""
    public_options: list[str] = []
    """Options that are no secrets, whatever their names."""

    @model_validator(mode="after")
    def _remember(self) -> CustomModelConfig:
        remember(self.callable, self.options, self.public_options)
        return self


NETWORKS = Family(
    "network",
    MLPConfig,
    CNNConfig,
    ResNetConfig,
    WideShallowConfig,
    BagConfig,
    TextCNNConfig,
    BiLSTMConfig,
    TreesConfig,
    TransformerConfig,
    CustomModelConfig,
)
"""Every network by the name of its block."""

ModelConfig = Annotated[
    MLPConfig
    | CNNConfig
    | ResNetConfig
    | WideShallowConfig
    | BagConfig
    | TextCNNConfig
    | BiLSTMConfig
    | TreesConfig
    | TransformerConfig
    | CustomModelConfig,
    Field(discriminator="name"),
    NETWORKS,
]


def model_problems(path: str, model: Any, kind: str) -> list[str]:
    teaches = path.startswith("teachers")
    if isinstance(model, ResNetConfig) and (model.branches > 1 or model.branch_section != 3):
        return [f"{path}.branches: is filled in by student.branches; leave it out"]
    if isinstance(model, TreesConfig) and not teaches:
        return [f"{path}.name: 'trees' is for teachers; a student is a network, use mlp, or custom"]
    if kind in getattr(model, "kinds", (kind,)):
        return [f"{path}.{line}" for line in model.own_problems()] if isinstance(model, NetworkConfig) else []
    known = [
        block for block in NETWORKS.blocks if issubclass(block, NetworkConfig)
    ]  # the others: built to see
    fit = [block for block in known if kind in block.kinds and (teaches or block is not TreesConfig)]
    good = sorted(block.model_fields["name"].default for block in fit)
    return [f"{path}.name: {model.name!r} does not take {kind} inputs; use {' or '.join(good)}, or custom"]


def transformer_problems(path: str, model: Any, data: DataConfig) -> list[str]:
    if not isinstance(model, TransformerConfig):
        return []
    problems = []
    if data.kind == "numeric":
        problems.append(f"{path}.name: 'transformer' does not take numeric inputs; use mlp, or custom")
    if data.kind == "text" and data.text.tokenizer != "pretrained":
        problems.append(
            f"{path}.name: 'transformer' reads the word pieces of its own tokenizer, and "
            f"data.text.tokenizer is "
            f"{data.text.tokenizer!r}; set data.text.tokenizer=pretrained"
        )
    if data.kind == "image" and model.pooling != "auto":
        problems.append(
            f"{path}.pooling: {model.pooling!r} is for texts; images are read by the library's own "
            "classifier, leave it out"
        )
    if model.fold_token_types and isinstance(data.columns.input, list):
        problems.append(f"{path}.fold_token_types: pairs of texts need both token types; leave it out")
    if model.weights == "teacher" and not path.startswith("student"):
        problems.append(f"{path}.weights: 'teacher' is for students; use pretrained or random")
    if model.pieces is not None:
        problems.append(f"{path}.pieces: is filled in by vocabulary: used; leave it out")
    if model.vocabulary != "all" and not path.startswith("student"):
        problems.append(f"{path}.vocabulary: {model.vocabulary!r} is for students; teachers keep all")
    if not model.source and not model.architecture and model.weights != "teacher":
        problems.append(
            f"{path}: neither source nor architecture; name a model (source: ...), or describe one "
            "(architecture: {model_type: bert, ...})"
        )
    return problems
