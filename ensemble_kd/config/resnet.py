"""The block of the small residual network."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ensemble_kd.config.image_models import MOST_BRANCHES, NetworkConfig, Start


class ResNetConfig(NetworkConfig):
    """Small residual network for images (arXiv 1512.03385, CIFAR form), also of cheap blocks (1711.02613)."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"start", "block", "groups", "reduction", "norm", "stem", "branches", "branch_section"}
    )
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    builder: ClassVar[str] = "resnet:build_resnet"
    name: Literal["resnet"] = "resnet"
    """`resnet`"""
    width: int = Field(16, ge=1)
    """Channels of the first of three stages; each stage doubles them and halves the resolution."""
    blocks: int = Field(1, ge=1)
    """Residual blocks per stage."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature before the classifier."""
    block: Literal["basic", "bottleneck", "grouped", "depthwise"] = "basic"
    """What a block is made of. `basic`: two 3x3 convolutions. `bottleneck`: 1x1 to fewer channels, 3x3, 1x1
    back. `grouped`: twice a 3x3 in groups and a 1x1 that mixes them. `depthwise`: one group per channel."""
    groups: int = Field(4, ge=2)
    """Groups of a `grouped` block's 3x3 convolutions; divides `width`."""
    reduction: int = Field(4, ge=2)
    """How many times fewer channels a `bottleneck` block has inside; divides `width`."""
    norm: Literal["batch", "group", "none"] = "batch"
    """What follows each convolution. `group`: group norm (arXiv 1803.08494) of up to 8 groups. `none`: biases
    alone, and each block begins as its shortcut (arXiv 1901.09321); such students are stacked in sweeps."""
    stem: Literal["small", "large"] = "small"
    """`small`: one 3x3 convolution. `large`: 7x7 with stride 2 and a maximum over 3x3 with stride 2, for
    images of 100 pixels and more."""
    start: Start = None
    """As that of an `mlp`."""
    branches: int = Field(1, ge=1, le=MOST_BRANCHES)
    """Branches over a shared trunk, whose answers a gate weighs; filled in by `student.branches`."""
    branch_section: Literal[2, 3] = 3
    """Section from which on each branch has layers of its own; filled in by `student.branches`."""

    def own_problems(self) -> list[str]:
        used = {"grouped": "groups", "bottleneck": "reduction"}
        problems = [
            f"{name}: {getattr(self, name)} is read with block: {block} alone, and it is {self.block!r}; "
            "leave it out"
            for block, name in used.items()
            if block != self.block and getattr(self, name) != type(self).model_fields[name].default
        ]
        name = used.get(self.block)
        if name is not None and self.width % getattr(self, name):
            problems.append(
                f"{name}: {getattr(self, name)} does not divide width = {self.width}; choose one that does"
            )
        elif self.block == "bottleneck" and self.norm == "group" and self.width // self.reduction < 2:
            problems.append(
                f"reduction: {self.reduction} leaves one channel of width = {self.width}, and group norm "
                "makes 0 of a single number; lower it, or raise width"
            )
        return problems

    def parameters(self, features: int, classes: int, vocabulary: int) -> int:
        """All but the stem, whose size depends on the channels of the images."""
        found, before = 0, self.width
        for stage in range(3):
            channels = self.width * 2**stage
            found += self._block(before, channels) + (self.blocks - 1) * self._block(channels, channels)
            before = channels
        return found + (before + 1) * classes

    def _block(self, before: int, channels: int) -> int:
        each = 1 if self.norm == "none" else 2  # numbers per channel behind a convolution
        found = 0 if before == channels else channels * (before + each)
        if self.block == "basic":
            return found + 9 * channels * (before + channels) + 2 * each * channels
        if self.block == "bottleneck":
            inner = channels // self.reduction
            convolutions = before * inner + 9 * inner * inner + inner * channels
            return found + convolutions + each * (2 * inner + channels)
        for a in (before, channels):
            together = 1 if self.block == "depthwise" else a // self.groups
            found += 9 * a * together + a * channels + each * (a + channels)
        return found

    @property
    def depth(self) -> int:
        return (
            3
            * self.branches
            * self.blocks
            * {"basic": 2, "bottleneck": 3, "grouped": 4, "depthwise": 4}[self.block]
        )

    @property
    def sizes(self) -> list[int]:
        return [self.width]
