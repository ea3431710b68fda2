"""The `data` block: where rows come from and how they are read; and what is wrong with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ensemble_kd.config.base import Block
from ensemble_kd.config.data_files import ColumnsConfig, CsvConfig, ImageConfig, missing_note
from ensemble_kd.paths import missing, missing_data
from ensemble_kd.targets import TARGETS, Target

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


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
    """Random changes of training inputs: of images, and by mixing and leaving out of numbers and texts."""

    later: ClassVar[frozenset[str]] = frozenset({"erase", "mixup", "word_dropout", "munge"})

    shift: int = Field(0, ge=0, le=64)
    """Largest shift in pixels, drawn per example and axis; what comes in is filled with 0."""
    horizontal_flip: bool = False
    """Mirror every example with probability one half."""

    erase: float = Field(0.0, ge=0, le=1)
    """Probability of erasing a rectangle of 2 to 40% of the pixels (arXiv 1708.04896), after the others."""

    mixup: float = Field(0.0, ge=0, le=1)
    """Images and numbers: probability of mixing an input with another row's, in shares drawn evenly
    (arXiv 1710.09412). The label is either one's, by the same shares; the teachers answer the mixture."""
    word_dropout: float = Field(0.0, ge=0, lt=1)
    """Texts: probability of leaving a token out; the first and the last stay."""
    munge: float = Field(0.0, ge=0, le=1)
    """Tables of numbers, in `soft_targets.views` alone: probability that a column takes over a value near
    that of a similar row (MUNGE; Bucila et al., KDD 2006). The teachers say what such rows are."""

    @property
    def active(self) -> bool:
        return self.of_images or self.mixup > 0 or self.word_dropout > 0 or self.munge > 0

    @property
    def with_labels(self) -> AugmentConfig:
        """Those changes that keep the label, for who learns from labels."""
        return self.model_copy(update={"munge": 0.0})

    @property
    def of_images(self) -> bool:
        return self.shift > 0 or self.horizontal_flip or self.erase > 0


class TableConfig(Block):
    """How columns of words and missing numbers become numbers (kind: numeric), as train has them.

    A column of words becomes one column of 0 and 1 for each of its values; a missing number becomes the mean
    of train, and a column of 0 and 1 says that it was missing.
    """

    most_values: int = Field(50, ge=1, le=10_000)
    """Values of a column of words that get a column each, the most frequent first; the others share one."""


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

    later: ClassVar[frozenset[str]] = frozenset({"table"})

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
    target: str = "class"
    """What the label column holds and the models predict: the `class` of a row, or a `value`, a number
    (regression: mean squared error; student.objective is then `mse` unless it is set), or several of them."""
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
    table: TableConfig | None = None
    """Columns of words and missing numbers (kind: numeric); null where all are numbers, and none is missing:
    then words and gaps are errors."""
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

    @property
    def predicts(self) -> type[Target]:
        """The kind of target."""
        return TARGETS[self.target]

    @field_validator("target")
    @classmethod
    def _is_known(cls, target: str) -> str:
        if target not in TARGETS:
            raise ValueError(f"{target!r} is no kind of target; use {' or '.join(TARGETS)}")
        return target

    @field_validator("class_names", mode="before")
    @classmethod
    def _as_text(cls, names: Any) -> Any:
        """Whole numbers are names, too; what YAML makes of `no` is none."""
        if not isinstance(names, list):
            return names
        if any(isinstance(name, bool) for name in names):
            raise ValueError("YAML reads no, off, yes and on as truth values; put these names in quotes")
        return [str(name) if isinstance(name, int) else name for name in names]


def data_problems(data: DataConfig) -> list[str]:
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
            "; set data.source=files" + missing_note(data.path)
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
    if data.augment.of_images and data.kind != "image":
        problems.append(
            f"data.augment: shift, horizontal_flip and erase are only for images; data.kind is {data.kind!r}"
        )
    if data.augment.mixup and data.kind == "text":
        problems.append("data.augment.mixup: tokens cannot be mixed; for texts use data.augment.word_dropout")
    if data.augment.munge and data.kind != "numeric":
        problems.append(f"data.augment.munge: only for tables of numbers; data.kind is {data.kind!r}")
    if data.augment.munge and data.augment.mixup:
        problems.append("data.augment: mixup and munge both make up rows of tables; set one of them to 0")
    if data.augment.word_dropout and data.kind != "text":
        problems.append(f"data.augment.word_dropout: only for texts; data.kind is {data.kind!r}")
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
    if data.table is not None and data.kind != "numeric":
        problems.append(
            f"data.table: only for columns of numbers and words; data.kind is {data.kind!r}, leave it out"
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


def text_augment_problems(config: Config) -> list[str]:
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
