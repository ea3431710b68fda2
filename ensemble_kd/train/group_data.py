"""What the members of one worker group share: rows, soft targets and what is found in them once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.data.munge import Neighbourhood, neighbourhood
from ensemble_kd.data.records import Arrays
from ensemble_kd.train.blocks import Block, MemberLogits
from ensemble_kd.train.stored_states import KeptStates


@dataclass
class TrainingData:
    """What the members of one worker group share: arrays held once, or shards to stream."""

    info: dict[str, Any]
    validation: Arrays
    test: Arrays
    transfer: Arrays | None = None
    """The transfer set in memory; None where it is streamed."""
    teacher: MemberLogits | None = None
    """The members' soft targets in memory, aligned with `transfer`."""
    combined: MemberLogits | None = None
    """As `teacher`, each member combined with its specialists."""
    states: KeptStates | None = None
    """Hidden states and attention of the members, aligned with `transfer`, where these are held."""
    stream: Callable[..., Callable[[int], Iterator[Block]]] | None = None
    """(`targets` or None, seed, views, here=False) -> epoch -> blocks, for a transfer set that is not in
    memory."""
    generalists: Path | None = None
    """Folder of the trained members that specialists start from."""
    run: Path | None = None
    """The run's folder, in which members start from others'."""
    corpora: dict[str, np.ndarray] = field(default_factory=dict)
    """Texts (N, L) without labels, by fingerprint."""
    weights: np.ndarray | None = None
    """(N,) float32: how much each row of the transfer set counts; None for 1 each."""

    @cached_property
    def pieces(self) -> Tensor:
        """Numbers of the word pieces that any text at hand has, padding's among them; found once for all."""
        assert self.transfer is not None
        read = np.zeros(self.info["vocabulary_size"], bool)
        read[0] = True
        for part in (self.transfer, self.validation, self.test):
            read[part.inputs.ravel()] = True
        return torch.from_numpy(np.flatnonzero(read))

    @cached_property
    def near(self) -> Neighbourhood:
        """Which rows of the transfer set are like which; found once for all."""
        assert self.transfer is not None
        return neighbourhood(self.transfer.inputs, self.info)
