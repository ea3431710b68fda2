"""The blocks of the networks for texts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ensemble_kd.config.image_models import NetworkConfig, linear_parameters
from ensemble_kd.config.start import INITIALISERS, StaticEmbeddingConfig, start_of


class TableConfig(NetworkConfig):
    """What networks with a table of vectors have in common."""

    later: ClassVar[frozenset[str]] = frozenset({"start"})

    start: Annotated[
        Annotated[StaticEmbeddingConfig, INITIALISERS.beside(StaticEmbeddingConfig)] | None,
        BeforeValidator(start_of),
    ] = None
    """What the table starts from (students): `static_embedding`, or a block with this `name` and its fields;
    null, or `random`, for random numbers."""


class BagConfig(TableConfig):
    """Mean of token embeddings, then fully connected layers."""

    later: ClassVar[frozenset[str]] = frozenset({"start", "piece_weights"})
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    builder: ClassVar[str] = "text:build_bag"
    name: Literal["bag"] = "bag"
    """`bag`"""
    embedding: int = Field(64, ge=1)
    """Width of a token embedding."""
    hidden: list[Annotated[int, Field(ge=1)]] = []
    """Units of each hidden layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature."""
    piece_weights: bool = False
    """Whether the mean is weighted, with one learned weight per token of the vocabulary."""

    def parameters(self, features: int, classes: int, vocabulary: int) -> int:
        table = vocabulary * (self.embedding + self.piece_weights)
        return table + linear_parameters([self.embedding, *self.hidden, classes])

    @property
    def depth(self) -> int:
        return len(self.hidden)

    @property
    def sizes(self) -> list[int]:
        return [self.embedding, *self.hidden]


class TextCNNConfig(TableConfig):
    """Convolutions over token embeddings, maximum over time, fully connected layers (arXiv 1408.5882)."""

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    builder: ClassVar[str] = "text_cnn:build_text_cnn"
    name: Literal["text_cnn"] = "text_cnn"
    """`text_cnn`"""
    embedding: int = Field(128, ge=1)
    """Width of a token embedding."""
    widths: list[Annotated[int, Field(ge=1, le=64)]] = Field([2, 3, 4], min_length=1, max_length=64)
    """Tokens that a filter reads at once, one entry for each group of filters."""
    filters: int = Field(100, ge=1)
    """Filters of each width."""
    hidden: list[Annotated[int, Field(ge=1)]] = []
    """Units of each hidden layer before the classifier."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature."""

    def parameters(self, features: int, classes: int, vocabulary: int) -> int:
        groups = sum(self.filters * (width * self.embedding + 1) for width in self.widths)
        pooled = self.filters * len(self.widths)
        head = linear_parameters([pooled, *self.hidden, classes])
        return vocabulary * self.embedding + groups + head

    @property
    def depth(self) -> int:
        return len(self.widths) + len(self.hidden)

    @property
    def sizes(self) -> list[int]:
        return [self.embedding, self.filters, *self.widths, *self.hidden]


class BiLSTMConfig(NetworkConfig):
    """Token embeddings, a bidirectional LSTM, max-pooling over time (as in arXiv 1903.12136)."""

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    builder: ClassVar[str] = "text:build_bilstm"
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

    def parameters(self, features: int, classes: int, vocabulary: int) -> int:
        widths = [self.embedding] + [2 * self.hidden] * (self.layers - 1 if self.layers > 1 else 0)
        first = 8 * self.hidden * (widths[0] + self.hidden + 2)
        others = 8 * self.hidden * (3 * self.hidden + 2) * (self.layers - 1)
        head = linear_parameters([2 * self.hidden, self.classifier_hidden, classes])
        return vocabulary * self.embedding + first + others + head

    @property
    def depth(self) -> int:
        return self.layers

    @property
    def sizes(self) -> list[int]:
        return [self.embedding, self.hidden, self.classifier_hidden]
