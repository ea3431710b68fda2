"""The `data` block: where rows come from and how they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ensemble_kd.config.base import Block
from ensemble_kd.config.data_files import ColumnsConfig, CsvConfig, ImageConfig
from ensemble_kd.targets import TARGETS, Target

if TYPE_CHECKING:
    pass


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
