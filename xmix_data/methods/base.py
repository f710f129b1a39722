"""What a training loop knows of a method: its phases, its loss, and the gradient of a step.

Comes in: a network and a batch. Goes out: a loss, and ``.grad`` of the parameters. The loop owns
everything else: data, optimiser, schedule, checkpoints, processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch.nn.functional import cross_entropy

from xmix_data.batch import MixedBatch, PairedBatch
from xmix_data.methods.network import Outputs, TransferNetwork

__all__ = ["Average", "Method", "Network", "Phase", "Step"]

Network = Callable[[torch.Tensor], Outputs]
"""A `TransferNetwork`, maybe compiled or in DDP."""
Average = Callable[[list[torch.Tensor]], None]
"""Replaces tensors, in place, by their means over all processes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one kind of batches."""

    batches: str
    """``"target"``: (images, labels) of the target. ``"auxiliary"``: (images, labels) of the
    pairing's source images; labels are source class ids. ``"mixed"``: `MixedBatch`.
    ``"paired"``: `PairedBatch`."""
    heads: tuple[str, ...]
    """What is trained besides the backbone: of ``"target"`` and ``"source"``, or ``"joint"``."""
    iterations: int | None = None
    """``None``: the training loop's own number."""


@dataclass(frozen=True)
class Step:
    """What came of one step."""

    loss: torch.Tensor
    """A scalar without a graph."""
    lr_scale: float = 1.0
    """The learning rate of this one step is multiplied by it."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Further numbers worth logging."""


class Method(ABC):
    """A way to transfer, phase after phase of ``phases``.

    A training loop does for each of them:

        method.prepare(network, phase)              # pre-trained weights are in place
        method.load_state_dict(...)                 # where it resumes
        for step, batch in ...:
            optimiser.zero_grad()
            done = method.backward(network, batch, step=step)
            ...                                     # learning rate * done.lr_scale
            optimiser.step()
    """

    name: ClassVar[str]
    """As on the command line."""
    weight_decay: float | None = None
    """The optimiser's; ``None``: whatever the training loop takes."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What to train on, in order."""
        return (Phase("target", ("target",)),)

    @property
    def unlabelled(self) -> bool:
        """Whether a batch of unlabelled target images is of use in each step."""
        return False

    def prepare(self, network: TransferNetwork, phase: Phase) -> None:
        """Begin a phase: only its heads learn from here on.

        Args:
            network: The bare module, on its device, with the weights that the phase starts from
                (those before any resume).
            phase: One of ``phases``.

        Raises:
            ValueError: The network lacks a head of the phase.
        """
        network.train_heads(phase.heads)

    @abstractmethod
    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        """The loss of a batch.

        Args:
            network: The network that was prepared, maybe compiled or in DDP.
            batch: Of the phase's kind.
            step: Steps done before in this phase. All that is random depends on it and a seed.

        Returns:
            A scalar with its graph.

        Raises:
            ValueError: The batch is of another kind, or its labels do not fit the heads. (On a
                GPU labels are looked at in step 0 only: reading them makes the host wait.)
        """

    def backward(
        self,
        network: Network,
        batch: Any,
        *,
        step: int,
        unlabelled: torch.Tensor | None = None,
        average: Average | None = None,
    ) -> Step:
        """Fill ``.grad``, which must be empty, with the gradient of a step.

        Args:
            network, batch, step: As for `loss`.
            unlabelled: (U, 3, H, W) target images, for a method that has a use for them.
            average: With several processes, for a method that makes its own gradients. Those of
                the others are averaged by the DDP that ``network`` is in.
        """
        loss = self.loss(network, batch, step=step)
        loss.backward()  # type: ignore[no-untyped-call]
        return Step(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs beyond weights and step: plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; after `prepare`.

        Raises:
            ValueError: It is the state of another method.
        """
        if state.keys() != self.state_dict().keys():
            raise ValueError(
                f"{self.name} has no state of {', '.join(state) or 'nothing'}; resume with the "
                "method that the training began with"
            )


def images_and_labels(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of one domain."""
    named = isinstance(batch, (MixedBatch, PairedBatch))
    if named or not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(
            f"the batch is a {type(batch).__name__}, and this phase takes (images, labels) of one "
            "domain, as ImageLoader gives them"
        )
    return batch[0], batch[1]


def batch_of(kind: type[T], batch: Any) -> T:
    """The batch of two domains, mixed or paired."""
    if not isinstance(batch, kind):
        raise ValueError(
            f"the batch is a {type(batch).__name__}, and this phase takes a {kind.__name__}, as "
            f"XMixLoader gives it with mix={kind is MixedBatch}"
        )
    return batch


def cross_entropies(
    outputs: Outputs, head: str, labels: torch.Tensor, step: int, rows: slice = slice(None)
) -> torch.Tensor:
    """(len(labels),) cross-entropy of each of these rows of the outputs."""
    return cross_entropy(
        fitting_logits(outputs, head, labels, step, rows), labels, reduction="none"
    )


def fitting_logits(
    outputs: Outputs, head: str, labels: torch.Tensor, step: int, rows: slice = slice(None)
) -> torch.Tensor:
    """Rows of the logits of the ``"target"`` or ``"source"`` head, which fit the labels."""
    logits = head_logits(outputs, head)[rows]
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"{head} labels are {labels.dtype} of shape {tuple(labels.shape)}; expected one "
            f"int64 class id for each of {len(logits)} images"
        )
    if labels.device.type == "cpu" or step == 0:
        check_head(head, logits, labels)
    return logits


def check_head(head: str, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise ValueError where a head has too few outputs for the labels; waits for a GPU."""
    highest = int(labels.max()) if len(labels) else -1
    if highest >= logits.shape[1]:
        raise ValueError(
            f"{head} label {highest} does not fit a {head} head of {logits.shape[1]} outputs; "
            f"make it with the loader's num_{head}_classes"
        )


def head_logits(outputs: Outputs, head: str) -> torch.Tensor:
    """The logits of the ``"target"`` or ``"source"`` head."""
    logits = outputs.target_logits if head == "target" else outputs.source_logits
    if logits is None:
        raise ValueError(f"the network has no {head} head; give TransferNetwork a {head}_head")
    return logits


def not_negative(name: str, value: float) -> None:
    """Check an option that weighs something."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a number of at least 0")


def positive(name: str, value: float) -> None:
    """Check an option that must not vanish."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a number above 0")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Check a choice."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be {' or '.join(map(repr, known))}")
