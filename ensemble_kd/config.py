"""The configuration as typed models: every field with its meaning, unit and range.

`load_config` reads one YAML file, applies `--set` overrides and reports *all* problems at once, each
with the path of its field. Nothing here imports torch or Ray, so `check` and `schema` answer at once.
"""

from __future__ import annotations

import codecs
import difflib
import json
import math
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from ensemble_kd import space
from ensemble_kd.config_checks import compute_problems, read_otherwise, shown, single_problems
from ensemble_kd.config_messages import PATTERNS, said
from ensemble_kd.config_yaml import nothing_unforeseen, one_line, parse, read, with_booleans
from ensemble_kd.errors import ConfigError
from ensemble_kd.paths import exists, missing, missing_data
from ensemble_kd.secret_options import remember
from ensemble_kd.stage_list import stages_of

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"
SPACES = Path(__file__).parent.parent / "tune" / "spaces"


MOST_GRID_POINTS = 10_000
MOST_PIXEL_VALUES = 64 * 10**6
"""Height x width x channels of an image as a model takes it."""

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
PHASE_NAME = r"^[a-z0-9][a-z0-9-]{0,40}$"
CALLABLE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
DEEPEST = 20
"""Parts of a path in `--set`."""
UNTYPED = frozenset({"architecture", "options", "objective", "terms"})
"""Blocks whose fields only those know who read them."""
SHOWN_PROBLEMS = 50

LAYER_CHOICES = r"^(every_second|distilbert|(first|last):[1-9]\d*)$"
PATTERNS |= {
    RUN_NAME: "expected letters, digits, '.', '_' and '-', at most 100 and a letter or digit first",
    PHASE_NAME: "expected small letters, digits and '-', at most 41 and a letter or digit first",
    CALLABLE: "expected module:callable, for example my_models:build",
    LAYER_CHOICES: "expected a list of numbers, first:K, last:K, every_second or distilbert",
}


class Block(BaseModel):
    """A block of the configuration: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------- data


class ColumnsConfig(Block):
    """Which columns of the source hold what."""

    input: str | list[str] = "input"
    """Column of the images or texts; for numeric data a list of columns, or one list-valued column; for pairs
    of texts the two columns (tokenizer: pretrained)."""
    label: str = "label"
    """Column of the class: text or whole numbers; those that occur are the classes, in order (numbers, also
    in text, by value); with `data.class_names` a name listed there, or its place from 0 on. With
    `data.target: value` of a number."""
    id: str | None = None
    """Column that identifies a row (integer or string); row numbers are used where it is null."""


class CsvConfig(Block):
    """How text files are written; each is found from the file itself where it is null."""

    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """What delimits the cells of CSV: one character, as in ";"; null to find out which of , ; | and tab."""
    encoding: str | None = None
    """Encoding of CSV and JSON, by Python's name of it, as in `cp1251`; null for UTF-8, UTF-16, and
    Windows-1252 (Latin-1) for what is neither."""

    @field_validator("delimiter")
    @classmethod
    def _is_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (not value.isascii() or value in '"\n\r\0'):
            raise ValueError(f'{value!r} cannot delimit cells; use , or ; or | or a tab, as "\\t"')
        return value

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                "a".encode(value)
                codecs.getincrementaldecoder(value)
        except (LookupError, ValueError, TypeError) as error:
            raise ValueError(f"{value!r} is no encoding that Python knows; for example cp1251") from error
        return value


class ImageConfig(Block):
    """How raw pixels are laid out, and how encoded images (PNG, JPEG, WebP, GIF, BMP, TIFF) become such."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """[height, width, channels] in pixels; needed for raw bytes and flat lists, read from encoded images."""
    mode: Literal["auto", "L", "RGB", "RGBA"] = "auto"
    """Channels of encoded images: `L` grey, `RGB`, or `RGBA` with transparency. `auto` is RGB if any of a
    sample of them has colour, else L."""
    resize: tuple[PositiveInt, PositiveInt] | None = None
    """[height, width] to which encoded images are scaled (bilinear, antialiased), by `predict` and `serve`
    too; null for images that have one size already."""

    @property
    def for_encoded(self) -> list[str]:
        """The settings that are not at their default and mean nothing for raw pixels."""
        held = {"mode": self.mode != "auto", "resize": self.resize is not None}
        return [name for name, given in held.items() if given]

    def problems(self) -> list[str]:
        """What does not fit together, one line each."""
        found = []
        for name, sizes in (("shape", self.shape), ("resize", self.resize)):
            if sizes is not None and math.prod(sizes) > MOST_PIXEL_VALUES:
                found.append(
                    f"data.image.{name}: {'x'.join(map(str, sizes))} is {math.prod(sizes):,} numbers an "
                    f"image, at most {MOST_PIXEL_VALUES:,}; make it smaller"
                )
        if self.shape is not None and self.resize is not None and self.shape[:2] != self.resize:
            found.append(
                f"data.image.resize: {list(self.resize)}, but data.image.shape is {list(self.shape)}; leave "
                "the shape out"
            )
        channels = {"L": 1, "RGB": 3, "RGBA": 4}.get(self.mode)
        if self.shape is not None and channels not in (None, self.shape[2]):
            found.append(
                f"data.image.mode: {self.mode} has {channels} channels, but data.image.shape is "
                f"{list(self.shape)}; leave one of them out"
            )
        return found


class TextConfig(Block):
    """How text becomes token numbers."""

    tokenizer: Literal["hashed", "subword", "pretrained"] = "hashed"
    """`hashed`: word and character n-grams hashed into buckets. `subword`: WordPiece learned on train.
    `pretrained`: the tokenizer of `source`, with its special tokens."""
    source: str | None = None
    """Hub name, local folder or `package:MODULE/FOLDER` of the tokenizer (tokenizer: pretrained); null for
    that of the first transformer that has a source: the teachers', else the student's."""
    vocabulary_size: int = Field(32768, ge=16, le=2**24)
    """Number of hash buckets, or size of the learned vocabulary; one more row is kept for padding."""
    max_length: int = Field(256, ge=1, le=8192)
    """Tokens kept per text; the rest is cut."""
    word_ngrams: int = Field(2, ge=1, le=5)
    """Longest word n-gram, in words (hashed only)."""
    char_ngrams: tuple[int, int] | None = (3, 5)
    """Shortest and longest character n-gram inside a word, in characters (hashed only); null for none."""
    lowercase: bool = True
    """Lower-case the text first."""


class AugmentConfig(Block):
    """Random changes of training images that keep their class."""

    shift: int = Field(0, ge=0, le=64)
    """Largest shift in pixels, drawn per example and axis; what comes in is filled with 0."""
    horizontal_flip: bool = False
    """Mirror every example with probability one half."""

    @property
    def active(self) -> bool:
        return self.shift > 0 or self.horizontal_flip


class TextAugmentConfig(Block):
    """New texts for the transfer set, made from train texts (arXiv 1903.12136 and 1909.10351).

    One number u per word decides what becomes of it: the mask, a word of its kind, a candidate for it, or
    nothing. With all probabilities at 0 a copy is the text itself.
    """

    copies: int = Field(20, ge=1, le=1000)
    """Copies tried per train row; those that come out twice, or masked altogether, are dropped."""
    mask_probability: float = Field(0.1, ge=0, le=1)
    """Probability of replacing a word by `mask_token`."""
    mask_token: str = Field("[MASK]", min_length=1)
    """What a masked word becomes."""
    pos_probability: float = Field(0.1, ge=0, le=1)
    """Probability of replacing a word by another of its part of speech, drawn by its frequency in train."""
    tagger: Literal["induced", "textblob"] = "induced"
    """Parts of speech: word classes `induced` from the train texts, whatever their language, or the English
    lexicon of the package `textblob`, which must be installed."""
    ngram_probability: float = Field(0.25, ge=0, le=1)
    """Probability of keeping only a random run of words, after the replacements."""
    ngram_max: int = Field(5, ge=1)
    """Longest such run, in words; the length is uniform in 1..ngram_max."""
    word_probability: float = Field(0.0, ge=0, le=1)
    """Probability of replacing a word by one of its `candidates` (TinyBERT: 0.4)."""
    candidates: int = Field(15, ge=1, le=1000)
    """Candidates per word, of which one is drawn uniformly."""
    masked_lm: str | None = None
    """Folder of a Hugging Face masked language model (WordPiece): candidates for words of a single piece."""
    word_vectors: str | None = None
    """Text file of word vectors, GloVe's format: the nearest words, where the language model gives none."""


class DataConfig(Block):
    """The labelled data set, its splits and the optional unlabelled transfer set."""

    source: Literal["digits", "files", "hub"] = "files"
    """`digits`: embedded (scikit-learn). `files`: `path`. `hub`: a Hugging Face `datasets` name."""
    path: str | dict[Literal["train", "validation", "test"], str] | None = None
    """File, folder (train.*, validation.*, test.*), glob or URL; or one of these per split."""
    hub_name: str | None = None
    """Name of the data set, or a folder that `datasets.load_dataset` reads (source: hub)."""
    hub_config: str | None = None
    """Configuration name of the data set (source: hub)."""
    kind: Literal["image", "text", "numeric"] = "image"
    """What the input column holds."""
    target: Literal["class", "value"] = "class"
    """What the label column holds and the models predict: the `class` of a row, or a `value`, a number
    (regression: mean squared error, one output; student.objective is then `mse` unless it is set)."""
    columns: ColumnsConfig = ColumnsConfig()
    """Names of the columns."""
    csv: CsvConfig = CsvConfig()
    """Delimiter and encoding of text files; found from the files where they are not given."""
    class_names: list[str] | str | None = None
    """Names in class order, or a file with one name a line (relative to `path`'s folder); null for the labels
    that occur. Labels that are integers count the names from 0, unless each is one of the names itself."""
    image: ImageConfig = ImageConfig()
    """Layout of images (kind: image)."""
    text: TextConfig = TextConfig()
    """Tokenising (kind: text)."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation (kind: image): used by teachers, and by `soft_targets.views`."""
    text_augment: TextAugmentConfig | None = None
    """Augmentation (kind: text): unlabelled texts for the transfer set; null for none."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of train held out, stratified by class if there are any, where there is no validation split."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of train held out, stratified by class if there are any, where there is no test split."""
    label_fraction: float = Field(1.0, gt=0, le=1)
    """Share of train rows whose label is kept, stratified; the others join the unlabelled transfer set."""
    unlabelled: str | None = None
    """File, folder, glob or URL of further unlabelled inputs for the transfer set."""
    splits: dict[Literal["train", "validation", "test", "unlabelled"], str | list[str] | None] = {}
    """The source's names of our splits, where they differ, as in `validation: validation_matched`: one, a
    list, or null for none (source: hub, or a folder as `path`)."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Rows of train whose input is in validation or test too, or repeats that of an earlier one: `keep` and
    tell how many, or `drop`, before any split is held out (one more pass over the data)."""
    shard_rows: int = Field(8192, ge=1)
    """Rows per file of the prepared data and the soft targets: the unit of work, memory and resume."""

    @field_validator("class_names", mode="before")
    @classmethod
    def _as_text(cls, names: Any) -> Any:
        """Whole numbers are names, too; what YAML makes of `no` is none."""
        if not isinstance(names, list):
            return names
        if any(isinstance(name, bool) for name in names):
            raise ValueError("YAML reads no, off, yes and on as truth values; put these names in quotes")
        return [str(name) if isinstance(name, int) else name for name in names]


# -------------------------------------------------------------------------------------------- models


class MLPConfig(Block):
    """Fully connected layers with ReLU."""

    name: Literal["mlp"] = "mlp"
    """`mlp`"""
    hidden: list[Annotated[int, Field(ge=1)]] = [128, 128]
    """Units of each hidden layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a hidden unit."""
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an input."""


class ResNetConfig(Block):
    """Small residual network for images (arXiv 1512.03385, CIFAR form)."""

    name: Literal["resnet"] = "resnet"
    """`resnet`"""
    width: int = Field(16, ge=1)
    """Channels of the first of three stages; each stage doubles them and halves the resolution."""
    blocks: int = Field(1, ge=1)
    """Residual blocks per stage."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature before the classifier."""


class BagConfig(Block):
    """Mean of token embeddings, then fully connected layers."""

    name: Literal["bag"] = "bag"
    """`bag`"""
    embedding: int = Field(64, ge=1)
    """Width of a token embedding."""
    hidden: list[Annotated[int, Field(ge=1)]] = []
    """Units of each hidden layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature."""


class BiLSTMConfig(Block):
    """Token embeddings, a bidirectional LSTM, max-pooling over time (as in arXiv 1903.12136)."""

    name: Literal["bilstm"] = "bilstm"
    """`bilstm`"""
    embedding: int = Field(100, ge=1)
    """Width of a token embedding."""
    hidden: int = Field(150, ge=1)
    """Units per direction."""
    layers: int = Field(1, ge=1)
    """Stacked LSTM layers."""
    classifier_hidden: int = Field(200, ge=1)
    """Units of the fully connected layer before the classifier."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature."""


class TransformerConfig(Block):
    """A model of the transformers library: text or image classifier, pretrained or from a configuration."""

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

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `public_options` where there are none: the fingerprints of such models stay."""
        found: dict[str, Any] = handler(self)
        if not self.public_options:
            found.pop("public_options", None)
        return found


ModelConfig = Annotated[
    MLPConfig | ResNetConfig | BagConfig | BiLSTMConfig | TransformerConfig | CustomModelConfig,
    Field(discriminator="name"),
]

# ------------------------------------------------------------------------------------------ training


class TrainingConfig(Block):
    """One training loop serves teachers and students; this is its dial panel."""

    epochs: int = Field(20, ge=0)
    """Passes over the training rows; 0 leaves the initial weights as they are."""
    batch_size: int = Field(128, ge=1)
    """Examples per optimiser step, over all replicas and accumulated parts together."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`adamw` (fused), or `sgd` with Nesterov momentum 0.9."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; cosine and linear end at 0."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly from 0."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """Weight decay, on matrices only; decoupled from the gradient with adamw, an L2 term with sgd."""
    max_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of the weights into one unit (arXiv 1207.0580); null for none."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the hard target spread evenly over the classes (arXiv 1512.00567)."""
    gradient_accumulation: int = Field(1, ge=1)
    """Parts that a batch is cut into to save memory."""
    gradient_clip: float | None = Field(None, gt=0)
    """Largest L2 norm of the whole gradient; null for none."""
    early_stopping: int | None = Field(None, ge=1)
    """Epochs without a better validation loss before stopping at the best epoch; null to run to the end."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; `auto` takes bfloat16 where the hardware computes in it."""


# ------------------------------------------------------------------------------------------ teachers


class MemberOverride(Block):
    """What one member of the ensemble does differently."""

    model: ModelConfig | None = None
    """Another architecture."""
    training: dict[str, Any] = {}
    """Fields of `training` to replace."""


class PredictionsConfig(Block):
    """Teacher outputs that the user already has: per split a list of Parquet files, one a member."""

    train: list[str] = Field(min_length=1)
    """One file per member, covering every row of the transfer set."""
    validation: list[str] = []
    """One file per member for the validation rows; empty if there are none."""
    test: list[str] = []
    """One file per member for the test rows; without them the report has no line for the ensemble."""
    id_column: str = "id"
    """Column that holds `data.columns.id`, or the row number in its file."""
    column: str = "logits"
    """Column with one list of C numbers per row."""
    values: Literal["logits", "probabilities"] = "logits"
    """What the numbers are."""


class TeachersConfig(Block):
    """The ensemble."""

    source: Literal["train", "pretrained", "callable", "mlflow", "predictions"] = "train"
    """`train` the members; take `pretrained` classifiers, a `callable` or an `mlflow` model as they are
    (`given`); or use `predictions` that exist already."""
    given: list[str] = []
    """One per member. pretrained: hub name, folder or `package:MODULE/FOLDER`. callable: `module:callable`,
    called with a batch of raw inputs: images (B, H, W, C) uint8, numbers (B, F), a list of texts or of pairs.
    mlflow: a model URI or folder; nothing pickled is read."""
    values: Literal["logits", "probabilities"] = "logits"
    """What a callable or MLflow model returns."""
    class_order: str | list[str | int] | dict[int, str | list[str | int]] | None = None
    """The data's classes in the order of a given teacher's outputs: names, or a file with one a line; by
    number of the member where they differ ({0: [...]}). null: the data's own order, or of a pretrained
    classifier that names the same classes its own."""
    on_mismatch: Literal["stop", "warn"] = "stop"
    """What a given member does to the run that answers like guessing, or whose classes seem to stand in
    another order on labelled rows."""
    predictions: PredictionsConfig | None = None
    """Files of teacher outputs (source: predictions)."""
    num_members: int = Field(5, ge=1, le=10000)
    """Teachers in the ensemble; they differ by seed."""
    model: ModelConfig = MLPConfig()
    """Architecture."""
    training: TrainingConfig = TrainingConfig()
    """Training."""
    overrides: list[MemberOverride] = []
    """Differences of single members, taken in turn: member i uses overrides[i mod length]."""
    bootstrap: bool = False
    """Draw each member's training rows with replacement."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training rows each member sees, drawn by its seed."""
    augment: bool = True
    """Apply `data.augment` anew in every epoch."""
    replicas_per_member: int = Field(1, ge=1)
    """Workers that train one member together (DDP)."""
    on_failure: Literal["stop", "exclude"] = "stop"
    """What a member whose loss is not finite does to the run: stop it, or leave the member out."""


class SoftTargetsConfig(Block):
    """The store of teacher outputs, computed once."""

    views: int = Field(1, ge=1, le=1000)
    """Versions of each transfer example in the store: itself and views-1 fixed augmentations."""
    top_k: int | None = Field(None, ge=1)
    """Keep the k largest logits and the log-mass of the rest, per member; null keeps all classes."""
    batch_size: int = Field(1024, ge=1)
    """Examples per forward pass."""
    num_actors: int | Literal["auto"] = "auto"
    """Processes that run the teachers; `auto`: one per CPU or GPU of the cluster."""
    keep: list[Literal["hidden", "attention"]] = []
    """What to keep of text transformers beside logits, so that no teacher runs beside the student for it:
    `hidden` states, `attention` scores."""
    keep_layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Numbers of the teachers' blocks to keep, 0 being the embeddings' output; null for all."""
    keep_positions: Literal["all", "first"] = "all"
    """Hidden states of all tokens, or of the `first` alone, [CLS], which is what `patient` reads."""
    keep_dtype: Literal["float16", "float32"] = "float16"
    """Numbers that they are kept in."""
    keep_at_most: float = Field(4.0, gt=0)
    """GB on disk that they may take; where it would be more, nothing is started."""


# --------------------------------------------------------------------------------------- specialists


class ClustersConfig(Block):
    """Sets of classes that the teachers confuse, one for each specialist (arXiv 1503.02531, section 5.2)."""

    source: Literal["covariance", "confusion"] = "covariance"
    """`covariance` of predictions on the transfer set, or `confusion` of classes on validation rows."""
    temperature: float = Field(3.0, gt=0, le=1000)
    """T at which predictions are softened first; at 1 the clusters of good teachers tend to collapse."""
    centre: bool | Literal["auto"] = "auto"
    """Subtract the means, as a covariance does; without it the matrix is E[p p^T], which suits few classes:
    their probabilities compete, so that hardly a covariance is positive. `auto`: from 50 classes on."""
    normalise: bool = True
    """Scale the matrix's columns to length 1, so that frequent classes do not dominate."""
    method: Literal["kmeans", "online", "spectral"] = "kmeans"
    """scikit-learn's k-means, the online form of the paper, or spectral clustering."""
    num_clusters: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Clusters; `auto` weighs the confusion inside them against their size."""
    classes_per_specialist: int | None = Field(None, ge=2)
    """Classes of each, the nearest to its cluster's centre; null for as many as the cluster has."""
    overlap: bool = True
    """Whether a class may belong to several specialists."""
    min_size: int = Field(2, ge=2)
    """Least number of classes of a specialist."""
    max_size: int | None = Field(None, ge=2)
    """Largest number of classes of a specialist; null for all but one."""


class SpecialistTrainingConfig(TrainingConfig):
    """As `TrainingConfig`, but shorter; weight_decay, max_norm, label_smoothing: the teacher's if unset."""

    epochs: int = Field(10, ge=1)
    """An epoch is the specialist's rows once, and as many others as `special_fraction` asks for."""
    early_stopping: int | None = Field(3, ge=1)
    """Epochs without a better loss on the validation rows on which it is asked; null to run to the end."""


class SpecialistsConfig(Block):
    """Experts on the clusters, trained from the teachers' weights (arXiv 1503.02531, section 5)."""

    generalists: Literal["all", "best"] = "all"
    """Teachers that get specialists: `all`, each its own, or only the `best` on validation rows."""
    output: Literal["aggregate", "row", "full"] = "aggregate"
    """`aggregate`: dustbin = log-sum-exp of the inherited rows of the other classes. `row`: one new row, the
    paper's. `full`: all classes, soft targets of the generalist outside the cluster."""
    train_outside: bool = True
    """Whether the rows behind an aggregated dustbin are trained along."""
    special_fraction: float = Field(0.5, gt=0, lt=1)
    """Share of a specialist's examples that come from its classes."""
    training: SpecialistTrainingConfig = SpecialistTrainingConfig()
    """Training."""
    correction: Literal["fitted", "formula", "none"] = "fitted"
    """Correction of the dustbin for `special_fraction`: fitted on validation rows, or the paper's formula."""
    top_n: int = Field(1, ge=1)
    """A specialist is asked where it knows one of the generalist's n most probable classes."""
    weight: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """Weight of each specialist against the generalist; `auto` chooses on validation rows, 0 being off."""
    replicas_per_member: int = Field(1, ge=1)
    """Workers that train one specialist together (DDP)."""


# ------------------------------------------------------------------------------------------- student


class OnlineConfig(Block):
    """Teachers that run beside the student, for what the soft targets do not hold: hidden states,
    attention."""

    teachers: Literal["best", "all"] | list[Annotated[int, Field(ge=0)]] = "best"
    """Of the run's teachers: the best on validation rows, all, or those of these numbers."""
    source: str | None = None
    """A pretrained transformer to learn from instead: hub name, folder or `package:MODULE/FOLDER`."""
    logits: bool = False
    """Compute their logits beside the student too, instead of reading the stored ones."""


class CorpusConfig(Block):
    """Texts without labels for one phase of the student's training."""

    path: str | None = None
    """File, folder, glob or URL."""
    column: str = "text"
    """Column of the texts."""
    max_length: int = Field(128, ge=8, le=8192)
    """Tokens kept per text."""
    min_length: int = Field(16, ge=1)
    """Tokens that a text needs to be taken."""
    rows: int | None = Field(None, ge=1)
    """Texts taken, from the beginning; null for all."""


class PhaseConfig(Block):
    """What a student learns before its last phase, which the `student` block itself describes."""

    name: str = Field(pattern=PHASE_NAME)
    """What it is called."""
    task: Literal["classify", "mlm"] = "classify"
    """`classify`: the classes of the data. `mlm`: words that were masked."""
    corpus: CorpusConfig | None = None
    """Texts to learn from; null for the transfer set."""
    training: TrainingConfig = TrainingConfig()
    """Training."""
    temperature: float = Field(1.0, gt=0, le=1000)
    """T, on both sides of the soft loss."""
    alpha: float = Field(1.0, ge=0, le=1)
    """Weight of the soft loss; 1 - alpha weighs the hard loss (labels, or the masked words)."""
    objective: str | dict[str, Any] | None = None
    """The soft loss; null for the `terms` alone."""
    terms: list[dict[str, Any]] = []
    """Further losses; as `student.terms`."""
    online: OnlineConfig = OnlineConfig()
    """Teachers that run beside the student."""
    mask_probability: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens to be masked (task: mlm)."""
    shared: bool = False
    """Whether the baselines go through this phase too, as pretraining that any student would have."""

    @property
    def objective_fields(self) -> dict[str, Any] | None:
        return {"name": self.objective} if isinstance(self.objective, str) else self.objective


class QuantizationConfig(Block):
    """Training for a student that is shipped in integers (Q8BERT, arXiv 1910.06188): it computes with rounded
    weights and activations, and its weights end as multiples of one step each."""

    bits: int = Field(8, ge=2, le=8)
    """Bits of each weight, and of each activation."""
    activations: bool = True
    """Whether inputs of linear layers and convolutions are rounded too."""
    start_fraction: float = Field(0.3, ge=0, lt=1)
    """Share of the steps that come before, in float; 0 where the student starts from trained weights."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay of the moving average of the largest activation, which is the end of the activations' range."""


class StudentConfig(Block):
    """The one model that is shipped, and how it learns."""

    model: ModelConfig = MLPConfig(hidden=[32])
    """Architecture."""
    training: TrainingConfig = TrainingConfig()
    """Training."""
    temperature: float = Field(4.0, gt=0, le=1000)
    """T, on both sides of the soft loss; below 1 sharpens underconfident teachers."""
    alpha: float = Field(0.9, ge=0, le=1)
    """Weight of the soft loss; 1 - alpha weighs the hard loss."""
    objective: str | dict[str, Any] | None = "kl"
    """The soft loss: its name (`kl`, `mse`), or a block with `name` and its fields; null for `terms`
    alone."""
    terms: list[dict[str, Any]] = []
    """Further losses, each a block with `name`, `weight` (a number or a schedule) and its fields; they are
    added to alpha * soft + (1 - alpha) * hard."""
    online: OnlineConfig = OnlineConfig()
    """Teachers that run beside the student where a loss needs more than stored logits."""
    phases: list[PhaseConfig] = []
    """What comes before: pretraining on a corpus, hidden states before predictions."""
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """How the members' distributions at T are averaged."""
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    """Weight of each member in the mean; null for equal weights."""
    targets: Literal["auto", "ensemble", "specialists", "both"] = "auto"
    """What to learn from: the `ensemble`, the ensemble with its `specialists`, or the mean of `both`; `auto`
    is `specialists` where the run has them."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the transfer set that a student sees, drawn by its seed."""
    without_classes: list[Annotated[int, Field(ge=0)]] = []
    """Numbers of classes whose labelled rows no student sees: it knows them from soft targets alone."""
    class_bias: Literal["none", "fitted"] = "none"
    """`fitted`: one bias per class, chosen on validation rows and kept in the student's weights; for classes
    that the transfer set lacks or has too few of (arXiv 1503.02531, section 3)."""
    quantization: QuantizationConfig | None = None
    """Training for integer weights, in the last phase; null for none."""
    seeds: int = Field(1, ge=1, le=1000)
    """Students trained, each with its own initialisation and order; the best on validation is shipped."""
    replicas_per_member: int = Field(1, ge=1)
    """Workers that train one student together (DDP)."""

    @property
    def objective_fields(self) -> dict[str, Any] | None:
        return {"name": self.objective} if isinstance(self.objective, str) else self.objective


# ---------------------------------------------------------------------------------------------- sweep


class SweepConfig(Block):
    """The search for the student's settings, judged on validation rows."""

    space: dict[str, str | list[Any]] = {
        "temperature": "loguniform(0.5, 20)",
        "alpha": "uniform(0.1, 1)",
    }
    """Per field of `student` what to try: uniform(a, b), loguniform(a, b), integers(a, b), logintegers(a, b),
    choice(a, b, ...) or a list. In a file also the name or path of a YAML file with such a block."""

    @field_validator("space", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """`training: {learning_rate: ...}`, as `--set` writes it too, is `training.learning_rate: ...`."""

        def leaves(block: dict[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
            for key, item in block.items():
                if item is None and str(key).endswith(")"):  # YAML's braces cut values at the comma
                    raise ValueError("in { } a comma ends a value; quote what has one: 'uniform(1, 8)'")
                if isinstance(item, dict) and item:
                    yield from leaves(item, f"{path}{key}.")
                else:
                    yield f"{path}{key}", item

        return dict(leaves(value)) if isinstance(value, dict) else value

    search: Literal["tpe", "random", "grid"] = "tpe"
    """Optuna's TPE, random, or every combination (a range then gives `grid_points` values)."""
    trials: int = Field(20, ge=1, le=100000)
    """Configurations to try (tpe, random); the hard-label baseline comes on top."""
    grid_points: int = Field(4, ge=2, le=1000)
    """Values taken from each range (search: grid)."""
    num_seeds: int = Field(1, ge=1, le=1000)
    """Students trained for each configuration; their mean is what counts."""
    metric: Literal["validation_accuracy", "validation_loss"] = "validation_accuracy"
    """What to choose by."""
    scheduler: Literal["auto", "asha", "none"] = "auto"
    """ASHA (arXiv 1810.05934) stops trials that lag behind; `auto`: with 12 epochs or more."""
    grace_epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Epochs that every trial gets (ASHA); `auto`: a quarter of them, as high temperatures start slowly."""
    reduction_factor: float = Field(3.0, gt=1)
    """Of so many trials at a rung one goes on (ASHA)."""
    concurrent_trials: int | Literal["auto"] = "auto"
    """Trials at a time, each with `compute.cpus_per_worker` and `gpus_per_worker`; `auto`: as many as fit."""
    fuse: int | Literal["auto"] = "auto"
    """Students trained together in one process as stacked parameters, where they differ in numbers only;
    1 for none, `auto` measures what pays."""
    max_failed: float = Field(0.5, ge=0, le=1)
    """Largest share of trials that may fail; above it the sweep ends."""
    refit: Literal["none", "train+validation"] = "none"
    """Whether the winner is trained anew with the validation rows among its own."""


# ----------------------------------------------------------------------------------- compute, tracking


class ComputeConfig(Block):
    """What the run may use of the cluster."""

    num_workers: int | tuple[int, int] | Literal["auto"] = "auto"
    """Training workers; `auto`: one per GPU, or per CPU where there is none, as many as have work.
    `[min, max]`: elastic, the group grows and shrinks with the cluster's nodes."""
    cpus_per_worker: float = Field(1.0, gt=0, le=10_000)
    """CPUs of one training worker, and torch threads of it when they are whole."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1000)] | Literal["auto"] = "auto"
    """GPUs of one training worker; `auto`: 1 where the cluster has GPUs, else 0."""
    max_failures: int = Field(3, ge=0)
    """Times a worker group is restarted at its last checkpoints after a worker or node died."""
    memory_budget: float = Field(4.0, gt=0)
    """GB of inputs and soft targets that may be held per node; a larger transfer set is streamed."""
    placement_timeout: float = Field(60.0, ge=0, le=10_000_000)
    """Seconds for which workers that a cluster has no room for yet are waited for."""
    grace: float = Field(20.0, ge=0, le=100_000)
    """Seconds that members have, after SIGTERM, to save where they stand."""
    scratch: str | None = None
    """Folder, the same on every node, for copies of a run folder in a store (s3://...); null for
    `ensemble-kd` in the temporary folder."""


class TrackingConfig(Block):
    """MLflow."""

    uri: str | None = None
    """Tracking server or database; null for `mlflow.db` (SQLite) beside the run folders."""
    experiment: str = "ensemble-kd"
    """Experiment that the runs are filed under."""
    enabled: bool = True
    """Whether anything is sent to MLflow."""


class ReferenceRow(Block):
    """Published figures of one system."""

    name: str
    """What it is called."""
    values: dict[str, float | int | str]
    """Its figures by column."""


class ReportConfig(Block):
    """The report."""

    reference: list[ReferenceRow] = []
    """Rows of published figures to print beside ours."""


ExportForm = Literal["onnx", "int8", "program", "huggingface", "mlflow"]


class ExportConfig(Block):
    """The forms that the shipped student is handed over in."""

    forms: list[ExportForm] = Field(["onnx", "int8"], min_length=1)
    """`onnx`, `int8` (ONNX with int8 weights), `program` (torch.export), `huggingface` (transformers students
    only), `mlflow` (a pyfunc model that runs the ONNX graph)."""
    tolerance: float = Field(1e-3, gt=0)
    """Largest difference of a logit from the student's on validation rows; int8 is judged by accuracy."""
    max_accuracy_loss: float = Field(0.5, ge=0)
    """Points of validation accuracy that int8 may lose."""
    int8: Literal["auto", "dynamic", "static"] = "auto"
    """How ranges of activations are found: as batches pass, or from `calibration_rows`; `auto` tries both and
    keeps the faster of those that are good enough."""
    calibration_rows: int = Field(512, ge=1)
    """Validation rows that a static int8 graph takes its ranges from."""
    calibrate: bool = False
    """Whether a temperature for the logits is fitted on validation rows (arXiv 1706.04599)."""
    precision: float | None = Field(None, gt=0, lt=1)
    """Share of answers that are to be right: fits the confidence from which on the model answers."""
    register_as: str | None = None
    """Name under which the mlflow form is registered at the tracking server."""

    @field_validator("forms")
    @classmethod
    def _once(cls, forms: list[str]) -> list[str]:
        if len(set(forms)) != len(forms):
            raise ValueError(f"name each form once, got {', '.join(forms)}")
        return forms

    @model_validator(mode="after")
    def _registered(self) -> ExportConfig:
        if self.register_as is not None and "mlflow" not in self.forms:
            raise ValueError(f"register_as needs the form mlflow; forms are {', '.join(self.forms)}, add it")
        return self


class Config(Block):
    """One run: (augment,) data, teachers, soft targets, (clusters, specialists,) (sweep,) student, (export,)
    report."""

    name: str = Field(pattern=RUN_NAME)
    """Name of the run and of its folder under `runs/`."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of splits, initialisations, orders and augmentations."""
    data: DataConfig
    """The data set."""
    teachers: TeachersConfig = TeachersConfig()
    """The ensemble."""
    soft_targets: SoftTargetsConfig = SoftTargetsConfig()
    """The store of teacher outputs."""
    clusters: ClustersConfig = ClustersConfig()
    """Sets of confusable classes."""
    specialists: SpecialistsConfig | None = None
    """Experts on the clusters; null for a run without."""
    student: StudentConfig = StudentConfig()
    """The student."""
    sweep: SweepConfig | None = None
    """Search for the student's settings; null to take them as they are."""
    compute: ComputeConfig = ComputeConfig()
    """Use of the cluster."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    export: ExportConfig | None = None
    """Forms to hand the student over in; null for the model folder alone."""
    report: ReportConfig = ReportConfig()
    """The report."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this run, in order."""
        return stages_of(self)

    @property
    def mean(self) -> str:
        """How the members are averaged: `student.mean` of distributions, or that of `value`s."""
        return "value" if self.data.target == "value" else self.student.mean

    @property
    def targets(self) -> str:
        """`student.targets` with `auto` resolved."""
        if self.student.targets != "auto":
            return self.student.targets
        return "ensemble" if self.specialists is None else "specialists"


# ------------------------------------------------------------------------------------ cross-field checks


def _model_problems(path: str, model: Any, kind: str) -> list[str]:
    takes = {"resnet": {"image"}, "bag": {"text"}, "bilstm": {"text"}, "mlp": {"image", "numeric"}}
    if model.name in takes and kind not in takes[model.name]:
        good = sorted(name for name, kinds in takes.items() if kind in kinds)
        return [
            f"{path}.name: {model.name!r} does not take {kind} inputs; use {' or '.join(good)}, or custom"
        ]
    return []


def _transformer_problems(path: str, model: Any, data: DataConfig) -> list[str]:
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


def _online_problems(config: Config) -> list[str]:
    """Teachers beside a student that are not there, and what their logits do not go with."""
    problems: list[str] = []
    count = num_teachers(config)
    for path, block in student_blocks(config):
        chosen = block.online.teachers
        if isinstance(chosen, list) and (
            not chosen or max(chosen) >= count or len(set(chosen)) != len(chosen)
        ):
            problems.append(
                f"{path}.online.teachers: {chosen}; name different ones of the "
                f"{count} teachers, 0 to {count - 1}"
            )
    student = config.student
    if student.online.logits and config.targets != "ensemble":
        problems.append(
            f"student.online.logits: those of the teachers alone, but student.targets is {config.targets!r}; "
            "set student.targets=ensemble, or leave the logits to the store"
        )
    return problems


def _path_problems(field: str, path: str | None) -> list[str]:
    if path is None:
        return [f"{field}: missing; a file, folder, glob or URL of texts (--set {field}=...)"]
    return [f"{field}: {problem}"] if (problem := missing_data(path)) is not None else []


def _phase_problems(config: Config) -> list[str]:
    """What does not fit between the student's phases and the rest."""
    problems: list[str] = []
    student, seen = config.student, set[str]()
    own_phase = False
    for i, phase in enumerate(student.phases):
        path = f"student.phases.{i}"
        if phase.name in seen:
            problems.append(f"{path}.name: {phase.name!r} comes twice; name each phase differently")
        seen.add(phase.name)
        if phase.shared and own_phase:
            problems.append(
                f"{path}.shared: baselines go through shared phases alone, so these come first; move it up"
            )
        own_phase = own_phase or not phase.shared
        if phase.shared and phase.corpus is None:
            problems.append(
                f"{path}.shared: pretraining that any student would have needs a corpus; on the transfer "
                f"set it is "
                "a part of distilling, so set shared to false"
            )
        if phase.corpus is not None and config.data.kind != "text":
            problems.append(f"{path}.corpus: texts, but data.kind is {config.data.kind!r}; leave it out")
        if phase.corpus is not None:
            problems += _path_problems(f"{path}.corpus.path", phase.corpus.path)
        if phase.task == "mlm" and (
            not isinstance(student.model, TransformerConfig) or config.data.text.tokenizer != "pretrained"
        ):
            problems.append(
                f"{path}.task: 'mlm' takes a transformer and data.text.tokenizer=pretrained; use classify"
            )
        if phase.task == "mlm" and phase.online.source is None and (phase.terms or phase.objective):
            problems.append(
                f"{path}.online.source: missing; the run's teachers are classifiers, and in phase "
                f"{phase.name!r} words are guessed; name a pretrained model"
            )
        if phase.task == "mlm" and phase.corpus is None:
            problems.append(f"{path}.corpus: missing; words to be guessed come from a corpus")
        if phase.task == "classify" and phase.corpus is not None:
            if phase.alpha < 1:
                problems.append(f"{path}.alpha: {phase.alpha}, but a corpus has no labels; set it to 1")
        if phase.alpha > 0 and phase.objective is None and not phase.terms:
            hard = "the masked words" if phase.task == "mlm" else "labels"
            problems.append(
                f"{path}.terms: none, and no objective, so that alpha = {phase.alpha} weighs nothing; name "
                f"one, or set {path}.alpha=0 for {hard} alone"
            )
        unjudged = phase.corpus is not None or (phase.alpha == 1 and phase.objective is None)
        if phase.training.early_stopping is not None and unjudged:
            problems.append(
                f"{path}.training.early_stopping: validation rows judge the classifier, which does not learn "
                "in this phase; leave it out"
            )
        if phase.corpus is not None and phase.corpus.min_length > phase.corpus.max_length:
            problems.append(
                f"{path}.corpus.min_length: {phase.corpus.min_length} is above max_length = "
                f"{phase.corpus.max_length}; lower it"
            )
        if phase.training.batch_size % (student.replicas_per_member * phase.training.gradient_accumulation):
            problems.append(
                f"{path}.training.batch_size: {phase.training.batch_size} cannot be cut into "
                f"{student.replicas_per_member} replicas x {phase.training.gradient_accumulation} parts"
            )
    return problems


def _data_problems(data: DataConfig) -> list[str]:
    problems = []
    if data.source == "files":
        paths = {"": data.path} if isinstance(data.path, str) else (data.path or {})
        if not paths:
            problems.append(
                "data.path: missing; source 'files' needs a file, folder, glob or URL (--set data.path=...)"
            )
        for split, path in paths.items():
            where = f"data.path.{split}" if split else "data.path"
            if path is not None and (problem := missing_data(path)) is not None:
                problems.append(f"{where}: {problem}")
        if isinstance(data.path, dict) and "train" not in data.path:
            problems.append("data.path.train: missing; only the other splits are given")
    elif data.path is not None:
        problems.append(
            f"data.path: set to {data.path!r} but data.source is {data.source!r}, which ignores it"
            "; set data.source=files" + _missing_note(data.path)
        )
    if data.source == "hub" and not data.hub_name:
        problems.append("data.hub_name: missing; source 'hub' needs the name of a data set")
    if data.source != "hub" and data.hub_name:
        problems.append(f"data.hub_name: set, but data.source is {data.source!r}; set data.source=hub")
    if data.splits and data.source == "digits":
        problems.append("data.splits: the embedded digits have no splits of their own; leave it out")
    if data.splits and isinstance(data.path, dict):
        problems.append("data.splits: set, but data.path names a file for each split; leave one of them out")
    if data.splits.get("unlabelled") and (data.unlabelled or data.text_augment):
        other = "data.unlabelled" if data.unlabelled else "data.text_augment"
        problems.append(f"data.splits.unlabelled: {other} is set too; leave one of them out")
    if data.augment.active and data.kind != "image":
        problems.append(f"data.augment: only for images; data.kind is {data.kind!r}")
    if data.kind == "text" and data.text.tokenizer == "subword" and data.text.vocabulary_size > 200_000:
        problems.append("data.text.vocabulary_size: at most 200000 for a learned vocabulary")
    if data.text.source is not None and data.text.tokenizer != "pretrained":
        problems.append(
            f"data.text.source: set, but data.text.tokenizer is {data.text.tokenizer!r}; "
            "set data.text.tokenizer=pretrained"
        )
    columns = data.columns.input
    if data.kind == "text" and isinstance(columns, list):
        if len(columns) != 2 or columns[0] == columns[1]:
            problems.append(f"data.columns.input: one column for text, or two for pairs, got {columns}")
        elif data.text.tokenizer != "pretrained":
            problems.append(
                f"data.columns.input: one column for text, got {columns}; for pairs set "
                f"data.text.tokenizer=pretrained, it is {data.text.tokenizer!r}"
            )
    grams = data.text.char_ngrams
    if grams is not None and not 1 <= grams[0] <= grams[1]:
        problems.append(
            f"data.text.char_ngrams: [shortest, longest] with 1 <= shortest <= longest, got {grams}"
        )
    if data.source == "digits" and data.kind != "image":
        problems.append("data.kind: the embedded digits are images")
    problems += data.image.problems()
    if data.kind != "image" or data.source == "digits":
        why = (
            "the embedded digits are raw pixels" if data.source == "digits" else f"data.kind is {data.kind!r}"
        )
        problems += [
            f"data.image.{n}: only for encoded images; {why}, leave it out" for n in data.image.for_encoded
        ]
    return problems


def _value_problems(config: Config) -> list[str]:
    """What is for classes alone, in a run whose labels are values."""
    if config.data.target != "value":
        return []
    teachers, student, sweep = config.teachers, config.student, config.sweep
    given = teachers.predictions
    wrong: list[tuple[str, Any, bool, str]] = [  # field, what it is, whether that is wrong, remedy
        ("data.class_names", config.data.class_names, config.data.class_names is not None, "leave it out"),
        ("data.source", "digits", config.data.source == "digits", "use files or hub"),
        ("specialists", "a block", config.specialists is not None, "leave it out"),
        ("clusters", "a block", config.clusters != ClustersConfig(), "leave it out"),
        # Its forms are held against the student by accuracy, and calibrated by likelihood.
        ("export", "a block", config.export is not None, "leave it out"),
        ("soft_targets.top_k", config.soft_targets.top_k, config.soft_targets.top_k is not None, "set null"),
        ("student.mean", student.mean, student.mean == "geometric", "set arithmetic"),
        ("student.class_bias", student.class_bias, student.class_bias != "none", "set none"),
        ("student.without_classes", student.without_classes, bool(student.without_classes), "leave it out"),
        ("teachers.values", teachers.values, teachers.values == "probabilities", "set logits"),
        ("teachers.class_order", "a list", teachers.class_order is not None, "leave it out"),
    ]
    if given is not None:
        path = "teachers.predictions.values"
        wrong.append((path, given.values, given.values == "probabilities", "set logits"))
    trained: list[tuple[str, float]] = [("teachers.training", teachers.training.label_smoothing)]
    for i, override in enumerate(teachers.overrides):
        smoothing = override.training.get("label_smoothing", 0)
        trained.append((f"teachers.overrides.{i}.training", smoothing if isinstance(smoothing, float) else 0))
    trained += [
        (f"{path}.training", block.training.label_smoothing) for path, block in student_blocks(config)
    ]
    wrong += [(f"{path}.label_smoothing", value, value > 0, "set 0") for path, value in trained]
    if sweep is not None:
        accuracy = sweep.metric == "validation_accuracy"
        wrong.append(("sweep.metric", sweep.metric, accuracy, "set validation_loss"))
        for name in ("temperature", "mean"):
            path = f"sweep.space.{name}"
            wrong.append((path, sweep.space.get(name), name in sweep.space, "leave it out"))
    return [
        f"{path}: {value if value == 'a block' else repr(value)} is for classes, and data.target is 'value'; "
        f"{remedy}"
        for path, value, bad, remedy in wrong
        if bad
    ]


def _text_augment_problems(config: Config) -> list[str]:
    data, settings = config.data, config.data.text_augment
    if settings is None:
        return []
    path, problems = "data.text_augment", []
    if data.kind != "text":
        problems.append(f"{path}: only for texts; data.kind is {data.kind!r}")
    if data.unlabelled is not None:
        problems.append(
            f"{path}: its texts take the place of data.unlabelled, which is set too; leave one of them out"
        )
    if config.teachers.source == "predictions":
        problems.append(
            f"{path}: given predictions know no new texts, and teachers.source is 'predictions'; leave it out"
        )
    per_word = settings.mask_probability + settings.pos_probability + settings.word_probability
    if per_word > 1 + 1e-9:
        problems.append(
            f"{path}: mask_probability, pos_probability and word_probability add up to {per_word:g}; at "
            "most one of them happens to a word, so lower them to 1 in all"
        )
    if not per_word and not settings.ngram_probability:
        problems.append(f"{path}: all probabilities are 0, so that no new text comes of it; raise one")
    given = [name for name in ("masked_lm", "word_vectors") if getattr(settings, name) is not None]
    if settings.word_probability and not given:
        problems.append(
            f"{path}.word_probability: {settings.word_probability:g}, but nothing gives candidates; set "
            f"{path}.masked_lm or {path}.word_vectors"
        )
    for name in given:
        there = getattr(settings, name)
        if (problem := missing(there, "folder" if name == "masked_lm" else "file")) is not None:
            problems.append(f"{path}.{name}: {problem}")
        elif not settings.word_probability:
            problems.append(
                f"{path}.{name}: set, but {path}.word_probability is 0, which leaves it unused; raise that"
            )
    return problems


def _missing_note(path: Any) -> str:
    problem = missing(path) if isinstance(path, str) else None
    return f" (and there is {problem})" if problem and problem.startswith("no such ") else ""


def _teacher_problems(config: Config) -> list[str]:
    teachers, problems = config.teachers, []
    if teachers.source == "train" and teachers.class_order is not None:
        problems.append(
            "teachers.class_order: set, but teachers.source is 'train': members that are trained learn the "
            "data's order; leave it out"
        )
    if isinstance(teachers.class_order, dict):
        count = num_teachers(config)
        problems += [
            f"teachers.class_order.{i}: there are {count} members, 0 to {count - 1}"
            for i in teachers.class_order
            if not 0 <= i < count
        ]
    if teachers.source == "predictions":
        if teachers.predictions is None:
            problems.append("teachers.predictions: missing; source 'predictions' needs the files")
        else:
            counts = {s: len(getattr(teachers.predictions, s)) for s in ("train", "validation", "test")}
            if any(n not in (0, counts["train"]) for n in counts.values()):
                problems.append(f"teachers.predictions: one file per member in every split, got {counts}")
        if config.soft_targets.views > 1:
            problems.append(
                "soft_targets.views: given predictions know no augmented views; set soft_targets.views=1"
            )
        if config.data.label_fraction < 1:
            problems.append("data.label_fraction: reorders rows; with teachers.source=predictions use 1.0")
        return problems
    if teachers.predictions is not None:
        problems.append(
            f"teachers.predictions: set, but teachers.source is {teachers.source!r}; set "
            "teachers.source=predictions"
        )
    if teachers.source == "train" and teachers.given:
        problems.append(
            "teachers.given: set, but teachers.source is 'train'; set teachers.source=pretrained, "
            "callable or mlflow"
        )
    if teachers.source != "train":
        if not teachers.given:
            problems.append(f"teachers.given: missing; source {teachers.source!r} needs one entry per member")
        return problems + _given_problems(config)
    problems += _model_problems("teachers.model", teachers.model, config.data.kind)
    for i, override in enumerate(teachers.overrides):
        if override.model is not None:
            problems += _model_problems(f"teachers.overrides.{i}.model", override.model, config.data.kind)
        try:
            _replace(teachers.training, override.training)
        except ValidationError as error:
            problems += _readable(error, TrainingConfig, prefix=f"teachers.overrides.{i}.training")
    if len(teachers.overrides) > teachers.num_members:
        problems.append(
            f"teachers.overrides: {len(teachers.overrides)} entries for {teachers.num_members} members; "
            "raise teachers.num_members or drop some"
        )
    return problems


def _given_problems(config: Config) -> list[str]:
    """What is wrong with the user's own teachers, as far as their names tell."""
    teachers, data, problems = config.teachers, config.data, []
    for i, entry in enumerate(teachers.given):
        if teachers.source == "callable" and not re.fullmatch(CALLABLE, entry):
            problems.append(
                f"teachers.given.{i}: {entry!r} is not of the form module:callable; for example "
                "my_models:predict"
            )
        if teachers.source == "mlflow" and ":/" not in entry and missing(entry, "folder") is not None:
            problems.append(
                f"teachers.given.{i}: {entry!r} is no model URI, and no folder either; give "
                "models:/NAME/VERSION, runs:/RUN_ID/PATH, or a folder"
            )
    if teachers.source == "callable":
        problems += numbers_only_problems(config)
    if teachers.source != "pretrained":
        return problems
    if teachers.values != "logits":
        problems.append(
            f"teachers.values: {teachers.values!r}, but pretrained classifiers give logits; leave it out"
        )
    if data.kind == "numeric":
        problems.append(
            "teachers.source: 'pretrained' classifiers take images or texts, the data is numeric; use "
            "callable"
        )
    if data.kind == "text" and data.text.tokenizer != "pretrained":
        problems.append(
            f"data.text.tokenizer: {data.text.tokenizer!r}, but the classifiers in teachers.given read word "
            "pieces of their own; set data.text.tokenizer=pretrained"
        )
    return problems


def _form_problems(config: Config) -> list[str]:
    """Forms of `export` that this kind of student does not have."""
    if config.export is None or "huggingface" not in config.export.forms:
        return []
    student, others = config.student, [form for form in typing.get_args(ExportForm) if form != "huggingface"]
    if not isinstance(student.model, TransformerConfig):
        return [
            "export.forms: huggingface is for students that are models of transformers, and student.model is "
            f"{student.model.name!r}; it can have {', '.join(others)}"
        ]
    if student.quantization is not None and student.quantization.activations:
        return [
            "export.forms: huggingface, but this student rounds the inputs of its layers, which those of "
            "transformers do not; set student.quantization.activations=false, or use "
            f"{', '.join(others)}"
        ]
    return []


def numbers_only_problems(config: Config) -> list[str]:
    """What a run cannot have whose teachers answer raw inputs with numbers, and are no networks of ours."""
    source, problems = config.teachers.source, []
    if config.soft_targets.views > 1:
        problems.append(
            f"soft_targets.views: {config.soft_targets.views}, but teachers.source={source} is asked about "
            "the rows as they are; set soft_targets.views=1"
        )
    if config.specialists is not None:
        problems.append(
            f"specialists: they start from a teacher's weights, and teachers.source={source} has none that "
            "can be read; train the teachers or leave the specialists out"
        )
    if config.sweep is not None and config.sweep.refit != "none":
        problems.append(
            f"sweep.refit: needs soft targets of the validation rows, which a run with "
            f"teachers.source={source} does not have; set it to none"
        )
    return problems


def _specialist_problems(config: Config) -> list[str]:
    """What does not fit between clusters, specialists and the rest."""
    clusters, problems = config.clusters, []
    if config.specialists is None:
        if config.student.targets in ("specialists", "both"):
            problems.append(
                f"student.targets: {config.student.targets!r}, but there are no specialists; "
                "add a `specialists` block (specialists: {} for the defaults) or use 'ensemble'"
            )
        return problems
    if config.teachers.source == "predictions":
        problems.append(
            "specialists: they start from a teacher's weights, and teachers.source=predictions has none; "
            "train the teachers or leave the specialists out"
        )
    if config.specialists.output == "full":
        if config.specialists.correction == "formula":
            problems.append(
                "specialists.correction: 'formula' supposes that all examples have labels, and output 'full' "
                "takes unlabelled ones too; use 'fitted'"
            )
        if config.specialists.training.label_smoothing > 0:
            problems.append(
                "specialists.training.label_smoothing: output 'full' learns from soft targets; set it to 0"
            )
    least, most, size = clusters.min_size, clusters.max_size, clusters.classes_per_specialist
    if most is not None and most < least:
        problems.append(f"clusters.max_size: {most} is below clusters.min_size = {least}; raise it")
    elif size is not None and not least <= size <= (most or size):
        problems.append(
            f"clusters.classes_per_specialist: {size} lies outside clusters.min_size = {least} and "
            f"clusters.max_size = {most}; change one of them"
        )
    return problems


def _keep_problems(config: Config) -> list[str]:
    """What is wrong with keeping more than logits, as far as it can be told without the data."""
    settings, teachers, problems = config.soft_targets, config.teachers, []
    path = "soft_targets.keep"
    layers = settings.keep_layers
    if not settings.keep:
        unused = [("layers", layers is not None), ("positions", settings.keep_positions != "all")]
        return [
            f"{path}_{name}: set, but {path} is empty, which leaves it unused; set {path}: [hidden], or "
            f"leave {path}_{name} out"
            for name, given in unused
            if given
        ]
    remedy = "set keep: [], so that the teacher runs beside the student"
    if config.data.kind != "text":
        problems.append(
            f"{path}: {settings.keep} of text transformers alone, and data.kind is {config.data.kind!r}; "
            f"{remedy}"
        )
    elif teachers.source not in ("train", "pretrained"):
        problems.append(
            f"{path}: {settings.keep}, but teachers.source={teachers.source} gives numbers and no states; "
            "train the teachers, take pretrained ones, or set keep: []"
        )
    elif teachers.source == "train":
        used = [override.model or teachers.model for override in teachers.overrides] or [teachers.model]
        if others := sorted({model.name for model in used if not isinstance(model, TransformerConfig)}):
            problems.append(
                f"{path}: {settings.keep} of text transformers alone, and a teacher is {others[0]!r}; "
                f"{remedy}"
            )
    if config.soft_targets.views > 1:
        problems.append(
            f"{path}: {settings.keep}, but soft_targets.views is {settings.views}; keep takes the rows as "
            "they are, so set views to 1"
        )
    if len(set(settings.keep)) < len(settings.keep):
        problems.append(f"{path}: {settings.keep} names something twice; name each once")
    if settings.keep_positions == "first" and "attention" in settings.keep:
        problems.append(
            f"{path}_positions: 'first' is for hidden states, and {path} has attention too; set it to all, "
            "or keep: [hidden]"
        )
    if layers is not None and (not layers or len(set(layers)) < len(layers)):
        problems.append(f"{path}_layers: different numbers of blocks, at least one, got {layers}")
    elif layers == [0] and "attention" in settings.keep:
        problems.append(
            f"{path}_layers: [0] is the embeddings' output, which has no attention; add a block, or set "
            "keep: [hidden]"
        )
    return problems


def cross_field_problems(config: Config) -> list[str]:
    """Everything that is wrong between fields: one line each, starting with the path of a field."""
    singles = single_problems(config) + compute_problems(config.compute)
    told = {line.split(":", 1)[0] for line in singles}  # whatever else is said of these follows from it
    others = _problems_between_fields(config)
    return singles + [line for line in others if line.split(":", 1)[0] not in told]


def _problems_between_fields(config: Config) -> list[str]:
    problems = _data_problems(config.data) + _text_augment_problems(config) + _teacher_problems(config)
    student = config.student
    text = config.data.kind == "text" and config.data.text.tokenizer == "pretrained"
    if text and config.teachers.source != "mlflow" and not text_source(config):  # that one may bring its own
        problems.append(
            "data.text.source: missing, and no teacher or student is a transformer with a source; give a hub "
            "name, a local folder or package:MODULE/FOLDER"
        )
    problems += _model_problems("student.model", student.model, config.data.kind)
    num_members = num_teachers(config)
    if student.weights is not None:
        if len(student.weights) != num_members:
            problems.append(f"student.weights: {len(student.weights)} weights for {num_members} teachers")
        elif not sum(student.weights) > 0:
            problems.append("student.weights: at least one weight must be above 0")
    if config.soft_targets.views > 1 and not config.data.augment.active:
        problems.append(
            "soft_targets.views: above 1 but data.augment changes nothing; set data.augment.shift"
        )
    problems += _value_problems(config)
    problems += _keep_problems(config)
    problems += _specialist_problems(config)
    problems += _form_problems(config)
    problems += _sweep_problems(config)
    problems += _phase_problems(config)
    problems += _online_problems(config)
    problems += _transformer_problems("student.model", student.model, config.data)
    if config.teachers.source == "train":
        problems += _transformer_problems("teachers.model", config.teachers.model, config.data)
        for i, override in enumerate(config.teachers.overrides):
            problems += _transformer_problems(f"teachers.overrides.{i}.model", override.model, config.data)
    trained = [
        ("teachers", config.teachers.training, config.teachers.replicas_per_member),
        ("student", student.training, student.replicas_per_member),
    ]
    if config.specialists is not None:
        specialists = config.specialists
        trained.append(("specialists", specialists.training, specialists.replicas_per_member))
    for path, block, replicas in trained:
        if block.batch_size % (replicas * block.gradient_accumulation):
            problems.append(
                f"{path}.training.batch_size: {block.batch_size} cannot be cut into {replicas} replicas x "
                f"{block.gradient_accumulation} accumulated parts"
            )
        workers = config.compute.num_workers
        if isinstance(workers, tuple) and replicas > 1:
            problems.append(
                f"{path}.replicas_per_member: {replicas}, but with compute.num_workers = {list(workers)} the "
                "group grows and shrinks one worker at a time; set one of them to a number"
            )
        elif isinstance(workers, int) and workers % replicas:
            problems.append(
                f"{path}.replicas_per_member: {replicas} does not divide compute.num_workers = {workers}"
            )
    workers = config.compute.num_workers
    if isinstance(workers, int) and workers < 1:
        problems.append(f"compute.num_workers: at least 1, or auto; got {workers}")
    if isinstance(workers, tuple) and not 1 <= workers[0] <= workers[1]:
        problems.append(f"compute.num_workers: [min, max] with 1 <= min <= max; got {list(workers)}")
    actors = config.soft_targets.num_actors
    if actors != "auto" and actors < 1:
        problems.append(f"soft_targets.num_actors: at least 1, or auto; got {actors}")
    return problems


def corners(config: Config) -> list[tuple[str, Config]]:
    """The configuration with one searched field at an end of its range, or at one of its choices, each.

    The first of the pair says which, as `sweep.space.PATH: VALUE`. Needs a space without problems.
    """
    if config.sweep is None:
        return []
    found = []
    for path, dimension in space.parse_space(config.sweep.space).items():
        for value in dimension.points(2):
            student = space.apply(config.student, {path: value})
            found.append(
                (
                    f"sweep.space.{path}: {value!r}",
                    config.model_copy(update={"student": student, "sweep": None}),
                )
            )
    return found


def corner_problems(config: Config, problems_of: Callable[[Config], list[str]]) -> list[str]:
    """What `problems_of` finds at the corners of the search space and not in the configuration itself."""
    known = set(problems_of(config.model_copy(update={"sweep": None})))
    found: dict[str, None] = {}
    for where, corner in corners(config):
        for problem in problems_of(corner):
            if problem not in known:
                found[f"{where}: {problem}"] = None
    return list(found)


def _sweep_problems(config: Config) -> list[str]:
    sweep = config.sweep
    if sweep is None:
        return []
    if problems := space.problems(config.student, sweep.space):
        return problems
    problems = corner_problems(config, cross_field_problems)
    dimensions = space.parse_space(sweep.space)
    if sweep.search == "grid":
        points = math.prod(len(dimension.points(sweep.grid_points)) for dimension in dimensions.values())
        if points > MOST_GRID_POINTS:
            problems.append(
                f"sweep.space: the grid has {points:,} points; lower sweep.grid_points, drop a field, or use "
                "search: tpe"
            )
    if config.student.phases:
        # Phases are trained once, before the trials, which all start from the last one.
        fixed_by_phases = ("model", "phases", "fraction", "mean", "weights", "without_classes")
        problems += [
            f"sweep.space.{path}: the student's phases are trained once, with one value of it; leave it out "
            "of the space, or the phases out of the student"
            for path in dimensions
            if path.split(".")[0] in fixed_by_phases
        ]
    alphas = dimensions["alpha"].points(2) if "alpha" in dimensions else [config.student.alpha]
    if not any(alphas) and not config.student.terms:
        problems.append(
            "sweep.space.alpha: always 0, so that nothing is distilled; raise it (a baseline on hard labels "
            "is among the trials anyway)"
        )
    epochs, grace = config.student.training.epochs, sweep.grace_epochs
    fixed = "training.epochs" not in dimensions
    if sweep.scheduler == "asha" and fixed and grace != "auto" and grace >= epochs:
        problems.append(
            f"sweep.grace_epochs: {grace}, but a trial has {epochs} epochs, so ASHA could stop "
            "none; lower it, or use scheduler: none"
        )
    for name, value in (("concurrent_trials", sweep.concurrent_trials), ("fuse", sweep.fuse)):
        if value != "auto" and value < 1:
            problems.append(f"sweep.{name}: at least 1, or auto; got {value}")
    if sweep.refit != "none":
        for wrong, field in (
            (config.soft_targets.views > 1, f"soft_targets.views = {config.soft_targets.views}"),
            (config.specialists is not None, "a `specialists` block"),
            (config.teachers.source == "predictions", "teachers.source = predictions"),
            (config.student.class_bias != "none", "student.class_bias = fitted"),
        ):
            if wrong:
                problems.append(
                    "sweep.refit: needs soft targets of the validation rows, and nothing fitted on them, "
                    f"which a run with {field} does not have; set it to none"
                )
    if sweep.fuse != "auto" and sweep.fuse > 1 and config.student.replicas_per_member > 1:
        problems.append(
            f"sweep.fuse: {sweep.fuse}, but student.replicas_per_member = "
            f"{config.student.replicas_per_member}: what needs several workers is not stacked; set fuse to 1"
        )
    return problems


def student_blocks(config: Config) -> list[tuple[str, Any]]:
    """The student's block and those of its phases, each with its path: what has losses of its own."""
    phases = [(f"student.phases.{i}", phase) for i, phase in enumerate(config.student.phases)]
    return [("student", config.student), *phases]


def num_teachers(config: Config) -> int:
    """Members of the ensemble, trained or given."""
    if config.teachers.source == "predictions" and config.teachers.predictions is not None:
        return len(config.teachers.predictions.train)
    if config.teachers.source != "train":
        return len(config.teachers.given)
    return config.teachers.num_members


def text_source(config: Config) -> str | None:
    """Where the pretrained tokenizer comes from; None without one, or where nothing names a source."""
    if config.data.text.tokenizer != "pretrained":
        return None
    teachers, student = config.teachers, config.student
    models = [teachers.model, *(override.model for override in teachers.overrides), student.model]
    sources = [
        config.data.text.source,
        *(teachers.given[:1] if teachers.source == "pretrained" else []),
        *(model.source for model in models if isinstance(model, TransformerConfig)),
        student.online.source,
        *(phase.online.source for phase in student.phases),
    ]
    return next((source for source in sources if source), None)


def _replace(block: Any, changes: dict[str, Any]) -> Any:
    return type(block).model_validate({**block.model_dump(), **changes})


def member_settings(teachers: TeachersConfig, index: int) -> tuple[Any, TrainingConfig]:
    """Architecture and training of member `index`, its override applied."""
    if not teachers.overrides:
        return teachers.model, teachers.training
    override = teachers.overrides[index % len(teachers.overrides)]
    return override.model or teachers.model, _replace(teachers.training, override.training)


# ---------------------------------------------------------------------------------------------- loading


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    """The blocks that an annotation such as `list[A | B] | None` can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in typing.get_args(annotation) for block in _blocks(part)]


def _known_keys(root: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the block that `loc` (of a pydantic error) ends in."""
    blocks: list[type[BaseModel]] = [root]
    for part in loc:
        if isinstance(part, int):
            continue
        hinted = [b for b in blocks if b.model_fields.get("name") and b.model_fields["name"].default == part]
        if hinted:  # a step into one branch of a union, told apart by `name`
            blocks = hinted
            continue
        blocks = [
            inner
            for b in blocks
            if part in b.model_fields
            for inner in _blocks(b.model_fields[part].annotation)
        ]
    return sorted({name for block in blocks for name in block.model_fields})


def _plain(loc: tuple[Any, ...], root: type[BaseModel]) -> str:
    """A pydantic location as the user wrote it: the tags of unions left out."""
    kept, blocks = [], [root]
    for part in loc:
        if isinstance(part, int):
            kept.append(str(part))
            continue
        named = [b for b in blocks if "name" in b.model_fields and b.model_fields["name"].default == part]
        if named and not any(part in b.model_fields for b in blocks):
            blocks = named
            continue
        if "[" in part or part.removeprefix("constrained-") in ("str", "int", "float", "bool"):
            continue
        kept.append(part)
        blocks = [
            inner
            for b in blocks
            if part in b.model_fields
            for inner in _blocks(b.model_fields[part].annotation)
        ]
    return ".".join(kept)


def _readable(error: ValidationError, root: type[BaseModel], prefix: str = "") -> list[str]:
    lines: dict[str, str] = {}
    found = error.errors(include_url=False)
    for item in found[:SHOWN_PROBLEMS]:
        path = ".".join(filter(None, [prefix, _plain(item["loc"], root)]))
        if item["type"] == "extra_forbidden":
            known = _known_keys(root, item["loc"][:-1])
            close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            held = (
                f" (a block with {', '.join(map(shown, list(item['input'])[:10]))})"
                if isinstance(item["input"], dict)
                else ""
            )
            line = f"unknown setting{held}; {hint}"
        else:
            line = said(item)
        # A union reports each branch; one line per path is enough.
        lines[path] = f"{lines[path]}; or {line}" if path in lines and line not in lines[path] else line
    return [f"{path}: {line}" for path, line in lines.items()]


def _some(problems: list[str]) -> list[str]:
    """Each in one paragraph, and no more than a reader takes in."""
    return [one_line(problem, 1000) for problem in problems[:SHOWN_PROBLEMS]]


def _drop(raw: dict[str, Any], path: str) -> None:
    """Take the setting at `path` out of `raw`, so that the rest can be checked too."""
    *parents, last = path.split(".")
    here: Any = raw
    for part in parents:
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, dict) and isinstance(here.get(part), dict | list):
            here = here[part]
        else:
            return
    if isinstance(here, dict):
        here.pop(last, None)


def apply_override(raw: dict[str, Any], assignment: str) -> None:
    """Apply one `--set a.b=value`; the value is read as YAML.

    Raises ConfigError where there is no `=`, or where a step of the path is not a block.
    """
    path, separator, text = assignment.partition("=")
    if not separator or not path.strip():
        raise ConfigError(
            f"--set {one_line(assignment, 200)}: expected PATH=VALUE, for example student.temperature=8"
        )
    told = f"--set {one_line(path, 200)}"
    if path.count(".") >= DEEPEST:
        raise ConfigError(f"{told}: a path of {path.count('.') + 1:,} parts; none has more than {DEEPEST}")
    value = parse(text, told)
    *parents, last = path.strip().split(".")
    here: Any = raw
    for i, part in enumerate(parents):
        if isinstance(here, list):
            following = here[_place(here, part, told)]
        else:
            following = here.setdefault(part, {})
            if following is None:
                following = here[part] = {}
        if not isinstance(following, dict | list):
            block = one_line(".".join(parents[: i + 1]), 200)
            raise ConfigError(f"{told}: {block} is {shown(following)}, not a block")
        here = following
    here[_place(here, last, told) if isinstance(here, list) else last] = value


def _place(items: list[Any], part: str, told: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(items):
        raise ConfigError(f"{told}: {one_line(part, 60)} is none of the {len(items)} entries, counted from 0")
    return int(part)


def _set_defaults_of_values(raw: dict[str, Any]) -> None:
    """Where labels are values, what is not set is not what suits classes."""
    data = raw.get("data")
    if not isinstance(data, dict) or data.get("target") != "value":
        return
    of_sweep = {"metric": "validation_loss", "space": {"alpha": "uniform(0.1, 1)"}}
    for name, usual in (("student", {"objective": "mse"}), ("sweep", of_sweep)):
        block = raw.setdefault(name, {}) if name == "student" else raw.get(name)
        if isinstance(block, dict):
            block |= {key: value for key, value in usual.items() if key not in block}


def validate(raw: dict[str, Any]) -> Config:
    """A checked configuration from plain data.

    Raises ConfigError with every problem found: wrong values, unknown keys, and what does not fit together.
    """
    problems: list[str] = []
    raw = json.loads(json.dumps(raw, default=str))  # a copy; YAML dates and the like become strings
    _set_defaults_of_values(raw)
    config = None
    for _ in range(5):  # each round drops what is wrong, so that cross-field problems come out as well
        try:
            config = Config.model_validate(raw)
            break
        except ValidationError as error:
            if (more := error.error_count() - SHOWN_PROBLEMS) > 0:  # not a configuration with a mistake
                raise ConfigError(
                    _some([*_readable(error, Config), *problems]) + [f"... and {more:,} more problems"]
                ) from error
            told = {line.split(":", 1)[0] for line in problems}  # what was dropped is missing now
            new = [line for line in _readable(error, Config) if line.split(":", 1)[0] not in told]
            problems += new
            before = json.dumps(raw)
            for line in new:
                _drop(raw, line.split(":", 1)[0])
            if json.dumps(raw) == before:
                break
    if config is not None:
        problems += read_otherwise(config, raw)
        told = {line.split(":", 1)[0] for line in problems}
        for problem in cross_field_problems(config):
            path = problem.split(":", 1)[0]
            if not any(
                t == path or t.startswith(f"{path}.") for t in told
            ):  # what was dropped above is missed
                problems.append(problem)
    if problems or config is None:
        raise ConfigError(_some(problems))
    return config


def recipe_paths() -> dict[str, Path]:
    """The shipped recipes by name."""
    folder = RECIPES if RECIPES.is_dir() else Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _spaces() -> Path:
    return SPACES if SPACES.is_dir() else Path(__file__).parent / "spaces"


def space_paths() -> dict[str, Path]:
    """The shipped search spaces by name."""
    return {path.stem: path for path in sorted(_spaces().glob("*.yaml"))}


def _read_space(raw: dict[str, Any]) -> None:
    """Put the content of a search space in the place of its name."""
    block = raw.get("sweep")
    if isinstance(block, dict) and isinstance(block.get("space"), str):
        block["space"] = space.read_space(block["space"], _spaces())


def load_config(
    path: str | Path,
    overrides: list[str] | None = None,
    sweep: bool = False,
    search_space: str | None = None,
    export: list[str] | None = None,
) -> Config:
    """Read a YAML file (or a shipped recipe by its name), apply `--set` overrides, check everything.

    With `sweep` a file without a `sweep` block gets the default one. `search_space`, the name or path of one,
    takes the place of the file's. `export` does as `sweep` for an `export` block, and
    gives it these forms if there are any.

    Raises ConfigError, with all problems, each starting with the path of its field.
    """
    with nothing_unforeseen(str(path)):
        raw = read(_file_of(path))
        if not isinstance(raw, dict):
            got = "nothing" if raw is None else shown(raw)
            raise ConfigError(f"{one_line(str(path), 300)}: expected a block of settings, got {got}")
        if search_space is not None:
            _block_of(raw, "sweep")["space"] = search_space
        _read_space(raw)  # first, so that an override may change a part of it
        for assignment in overrides or []:
            apply_override(raw, assignment)
        _read_space(raw)
        if raw.get("sweep") is None and sweep:
            raw["sweep"] = {}
        if export is not None:
            _block_of(raw, "export").update({"forms": export} if export else {})
        return validate(with_booleans(raw, UNTYPED))


def _block_of(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The block of that name, made where there is none. Raises ConfigError where it is something else."""
    if raw.get(name) is None:
        raw[name] = {}
    block = raw[name]
    if not isinstance(block, dict):
        raise ConfigError(f"{name}: expected a block of settings, got {shown(block)}")
    return block


def _file_of(path: str | Path) -> Path:
    """A configuration's file, or that of the shipped recipe of this name. Raises ConfigError."""
    if str(path) and exists(path):
        return Path(path).expanduser()
    recipes = recipe_paths()
    if str(path) not in recipes:
        close = difflib.get_close_matches(str(path), recipes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"shipped recipes: {', '.join(recipes)}"
        raise ConfigError(f"no such configuration file or recipe: {one_line(str(path), 300)}; {hint}")
    return recipes[str(path)]


def json_schema() -> dict[str, Any]:
    """The schema of a configuration file, for editors."""
    return Config.model_json_schema()
