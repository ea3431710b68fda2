"""Networks of one architecture as rows of one matrix: a forward pass and an optimiser step for all at once.

Shapes: n networks, P trainable weights of each, B examples, C classes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ensemble_kd.config import TrainingConfig
from ensemble_kd.models.build import Network
from ensemble_kd.models.dropout import SeededNoise, given_noise
from ensemble_kd.train.device import autocast
from ensemble_kd.train.loop import make_optimizer

CHUNK = 8192
"""Examples times networks that `Stack.predict` passes through at once."""


class Stack(nn.Module):
    """n networks: each row of `weights` (n, P) holds one's parameters, matrices first.

    One matrix, so that the optimiser, clipping and checkpoints are a few operations whatever the number of
    layers. The parameters are views of it, and backward gathers one gradient (n, P).
    """

    weights: nn.Parameter
    numbers: list[int]
    """Which of the networks that it was made of is in each row."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        first = networks[0]
        self._first = [first]  # in a list: its own tensors are no state of the stack
        trained = [(name, p) for name, p in first.named_parameters() if p.requires_grad]
        trained.sort(key=lambda item: item[1].dim() <= 1)  # stable: in order otherwise
        self.shapes = {name: parameter.shape for name, parameter in trained}
        self.num_decayed = sum(parameter.numel() for _, parameter in trained if parameter.dim() > 1)
        self.weights = nn.Parameter(torch.stack([self._row(network) for network in networks]))
        self.numbers = list(range(len(networks)))
        self._constants = self.constants = self._differing(networks)
        every = sum(1 for _ in first.named_parameters(remove_duplicate=False))
        tied = every > sum(1 for _ in first.named_parameters())

        def forward(parameters: dict[str, Tensor], constants: dict[str, Tensor], inputs: Tensor) -> Tensor:
            logits: Tensor = functional_call(
                first, (parameters, constants), (inputs,), tie_weights=tied
            ).logits
            return logits

        def noisy(
            parameters: dict[str, Tensor], constants: dict[str, Tensor], inputs: Tensor, source: Tensor
        ) -> Tensor:
            with given_noise(lambda x, probability: self._noise(x, probability)[source]):
                return forward(parameters, constants, inputs)

        # `same`: noise is drawn inside, for all at once. What draws by itself is not `deterministic`.
        self._shared = vmap(noisy, in_dims=(0, 0, None, 0), randomness="same")
        self._each = vmap(noisy, in_dims=(0, 0, 0, 0), randomness="same")
        self.reseed([0] * len(networks))

    def __len__(self) -> int:
        return len(self.weights)

    def forward(self, inputs: Tensor, shared: bool = True) -> Tensor:
        """(n, B, C) logits of inputs (B, ...) for all, or where not `shared` of (n, B, ...)."""
        parts = torch.split(self.weights, [shape.numel() for shape in self.shapes.values()], dim=1)
        parameters = {
            name: part.view(len(part), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        call = self._shared if shared else self._each
        logits: Tensor = call(parameters, self.constants, inputs, self._sources[self.numbers])
        return logits

    def reseed(self, seeds: Sequence[int]) -> None:
        """From now on drop out what each network would by itself after `torch.manual_seed` of its seed."""
        self._noise, different = SeededNoise(seeds), list(dict.fromkeys(seeds))
        sources = [different.index(seed) for seed in seeds]
        self._sources = torch.tensor(sources, device=self.weights.device)  # (n,) of the first n

    def train(self, mode: bool = True) -> Stack:
        self._first[0].train(mode)
        return super().train(mode)

    @torch.no_grad()
    def predict(self, inputs: Tensor, device: torch.device, precision: str = "float32") -> Tensor:
        """(n, N, C) float32 logits on the CPU, in evaluation mode."""
        self.eval()
        chunks, size = [], max(1, CHUNK // len(self))
        for begin in range(0, len(inputs), size):
            with autocast(device, precision):
                logits = self(inputs[begin : begin + size].to(device))
            chunks.append(logits.float().cpu())
        return torch.cat(chunks, 1)

    @torch.no_grad()
    def keep(self, numbers: list[int]) -> None:
        """Let go of the other networks."""
        self.weights = nn.Parameter(self.weights[[self.numbers.index(number) for number in numbers]])
        self.constants = {name: constant[numbers] for name, constant in self._constants.items()}
        self.numbers = numbers

    @torch.no_grad()
    def copy_to(self, network: Network, weights: Tensor, number: int) -> None:
        """Give `network` these weights (P,), and whatever else that network has of its own."""
        state = dict(network.named_parameters()) | dict(network.named_buffers())
        parts = torch.split(weights, [shape.numel() for shape in self.shapes.values()])
        for name, part in zip(self.shapes, parts, strict=True):
            state[name].copy_(part.view(self.shapes[name]))
        for name, constant in self._constants.items():
            state[name].copy_(constant[number])

    def _row(self, network: Network) -> Tensor:
        parameters = dict(network.named_parameters())
        return torch.cat([parameters[name].detach().flatten() for name in self.shapes])

    def _differing(self, networks: Sequence[Network]) -> dict[str, Tensor]:
        """(n, ...) of each frozen parameter and buffer that is not the same in all networks.

        What is the same stays in the first network: normalising shared inputs is then done once.
        """
        states = [dict(network.named_parameters()) | dict(network.named_buffers()) for network in networks]
        found = {}
        for name, tensor in states[0].items():
            if name not in self.shapes and not all(torch.equal(tensor, state[name]) for state in states):
                found[name] = torch.stack([state[name].detach() for state in states])
        return found


class StackedOptimizer:
    """`make_optimizer` for a stack, with a learning rate and a weight decay for each row.

    torch's fused kernels take one learning rate. So they work on `steps` (n, P), zeros: what they leave there
    at the schedule's factor as learning rate is the step to be scaled with each row's own.
    """

    def __init__(self, stack: Stack, trainings: Sequence[TrainingConfig]) -> None:
        self.stack, self.training = stack, trainings[0]
        device = stack.weights.device
        self.rates = torch.tensor([[t.learning_rate] for t in trainings], device=device)  # (n, 1)
        self.decays = torch.tensor([[t.weight_decay] for t in trainings], device=device)  # (n, 1)
        self.decaying = any(t.weight_decay > 0 for t in trainings)
        self.steps = torch.zeros_like(stack.weights.detach())
        usual = self.training.model_copy(update={"learning_rate": 1.0, "weight_decay": 0.0})
        self.inner = make_optimizer(nn.ParameterList([self.steps]), usual)

    @torch.no_grad()
    def step(self, gradient: Tensor, factor: float) -> None:
        """Update all rows by `gradient` (n, P), which is overwritten; `factor` is the schedule's."""
        weights = self.stack.weights.detach()
        if self.training.gradient_clip is not None:
            norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)  # (n, 1)
            gradient.mul_((self.training.gradient_clip / (norms + 1e-6)).clamp_(max=1.0))
        if self.decaying:
            matrices = weights[:, : self.stack.num_decayed]
            if self.training.optimizer == "sgd":  # an L2 term
                gradient[:, : self.stack.num_decayed].addcmul_(matrices, self.decays)
            else:
                matrices.mul_(1 - factor * self.rates * self.decays)
        (group,) = self.inner.param_groups
        group["lr"] = factor
        (steps,) = group["params"]
        steps.zero_()
        steps.grad = gradient
        self.inner.step()
        weights.addcmul_(steps, self.rates)

    def state_of(self, rows: list[int]) -> dict[str, Any]:
        """The state of torch's optimiser for these rows alone."""
        state = self.inner.state_dict()
        kept = {}
        for number, entry in state["state"].items():
            # Beside the moments (n, P) there may be a count of steps.
            kept[number] = {k: v[rows] if v is not None and v.dim() == 2 else v for k, v in entry.items()}
        return {**state, "state": kept}


def deterministic(network: Network, inputs: Tensor) -> bool:
    """Whether networks like this one can be a `Stack`; `inputs` (B, ...) are raw ones to try it on.

    Its training forward pass draws nothing at random but `models.dropout` and changes no buffer, padding
    makes no difference to texts (those of several seeds are brought to one length), and two in a stack give
    what each gives alone, gradients and dropout included.
    """
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            return _same_when_stacked(copy.deepcopy(network).cpu().train(), inputs.cpu())
    except Exception:  # whatever the user's module or vmap raises: it stays outside
        return False


@contextmanager
def quiet() -> Iterator[None]:
    """torch warns of operations that vmap maps one network at a time, as it does with embedding bags."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def _same_when_stacked(network: Network, inputs: Tensor) -> bool:
    if any(p.dtype != torch.float32 for p in network.parameters() if p.requires_grad):
        return False
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    seeds = [11, 12]

    def alone_of(one: Network, x: Tensor, seed: int) -> Tensor:
        noise = SeededNoise([seed])
        with given_noise(lambda x, probability: noise(x, probability)[0]):
            return one(x).logits

    torch.manual_seed(0)
    generator, first = torch.get_rng_state(), alone_of(network, inputs, seeds[0])
    drawn = not torch.equal(generator, torch.get_rng_state())
    torch.manual_seed(seeds[0])
    if drawn or not torch.equal(first, network(inputs).logits):
        return False
    if not all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers()):
        return False
    if network.input_scale is None and not _close(alone_of(network, F.pad(inputs, (0, 1)), seeds[0]), first):
        return False
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    stack = Stack([network, other])
    turned = inputs.flip(0)
    for seen, shared in (((inputs, inputs), True), ((inputs, turned), False)):
        stack.reseed(seeds)
        pairs = zip((network, other), seen, seeds, strict=True)
        alone = torch.stack([alone_of(one, x, seed) for one, x, seed in pairs])
        together = stack(inputs if shared else torch.stack(seen), shared)
        if not _close(together, alone):
            return False
        upstream = torch.randn_like(alone)
        (found,) = torch.autograd.grad((together * upstream).sum(), stack.weights)
        for one in (network, other):
            one.zero_grad()
        (alone * upstream).sum().backward()
        for one, row in zip((network, other), found, strict=True):
            gradients = {name: parameter.grad for name, parameter in one.named_parameters()}
            wanted = torch.cat([_given(gradients[name]).flatten() for name in stack.shapes])
            if not _close(row, wanted):
                return False
    return True


def _close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)


def _given(gradient: Tensor | None) -> Tensor:
    if gradient is None:  # alone it would never change, in a stack weight decay would shrink it
        raise ValueError("a parameter has no gradient")
    return gradient
