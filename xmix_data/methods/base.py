"""What a training loop knows of a method: its phases, its loss, and the gradient of a step.

Comes in: a network and a batch. Goes out: a loss, and ``.grad`` of the parameters. The loop owns
everything else: data, optimiser, schedule, checkpoints, processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch.nn.functional import cross_entropy

from xmix_data.batch import MixedBatch, PairedBatch
from xmix_data.methods.network import Outputs, TransferNetwork

__all__ = ["Average", "Method", "Network", "Phase", "Step"]

Network = Callable[[torch.Tensor], Outputs]
"""Type of a network in training: a `TransferNetwork`, maybe compiled or in DDP."""
Average = Callable[[list[torch.Tensor]], None]
"""Type of a function that replaces tensors, in place, by their means over all processes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Phase:
    """Part of a training, on one kind of batches."""

    batches: str
    """Kind of the batches.

    ``"target"``: (images, labels) of the target. ``"auxiliary"``: (images, labels) of the
    pairing's source images; labels are source class ids. ``"mixed"``: `MixedBatch`.
    ``"paired"``: `PairedBatch`."""
    heads: tuple[str, ...]
    """Heads that are trained besides the backbone: ``"target"``, ``"source"``, or ``"joint"``."""
    iterations: int | None = None
    """Number of steps; ``None`` leaves it to the training loop."""


@dataclass(frozen=True)
class Step:
    """Result of one step: its loss, and what the training loop has to do with it."""

    loss: torch.Tensor
    """Loss of the batch, a scalar without a graph."""
    lr_scale: float = 1.0
    """Factor of the learning rate in this one step."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Further numbers worth logging, by name."""


class Method(ABC):
    """Base class of the transfer learning methods, which train phase after phase of ``phases``.

    A training loop does for each of them:

        method.prepare(network, phase)              # pre-trained weights are in place
        if method.surveys: method.survey(network, batches)
        method.load_state_dict(...)                 # where it resumes
        for step, batch in ...:
            optimiser.zero_grad()
            done = method.backward(network, batch, step=step)
            ...                                     # learning rate * done.lr_scale
            optimiser.step()
    """

    name: ClassVar[str]
    """Name of the method on the command line."""
    weight_decay: float | None = None
    """Weight decay of the optimiser; ``None`` leaves it to the training loop."""
    mixes: ClassVar[bool] = False
    """Whether the method mixes images."""
    keeps_classifier: ClassVar[bool] = False
    """Whether its source head is the whole pre-trained classifier, and no source images are."""
    surveys: bool = False
    """Whether it looks at the target's images before a training, see `survey`."""
    mixing = True
    """Whether it does so now; a training loop may leave mixing off at the end."""
    label_smoothing = 0.0
    """Share of each label, in [0, 1), that is spread evenly over its own label set."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases of the training, in order."""
        return (Phase("target", ("target",)),)

    @property
    def mixes_domains(self) -> bool:
        """Whether it mixes target images with source images, by λ that the loader draws."""
        kinds = {phase.batches for phase in self.phases}
        return "mixed" in kinds or (self.mixes and "paired" in kinds)

    @property
    def unlabelled(self) -> bool:
        """Whether the method has a use for a batch of unlabelled target images in each step."""
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

    def survey(
        self, network: TransferNetwork, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Look at the target's training images, before the first step and before a resume.

        Called after `prepare` where ``surveys`` says so, in every process alike.

        Args:
            network: The network that was prepared, in eval mode, as it starts.
            batches: (images, labels) of all training images in order, as a test would crop them.
        """
        raise NotImplementedError(f"{self.name} says that it surveys the target, and does not")

    @abstractmethod
    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        """Compute the loss of a batch.

        Args:
            network: The network that was prepared, maybe compiled or in DDP.
            batch: A batch of the phase's kind.
            step: Number of steps before this one in the phase. All that is random depends on it
                and a seed.

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
            average: Function that averages over several processes, for a method that makes its own
                gradients. Those of the other methods are averaged by the DDP that ``network`` is
                in.

        Returns:
            The loss, and what else the training loop has to know of the step.

        Raises:
            ValueError: As for `loss`.
        """
        loss = self.loss(network, batch, step=step)
        loss.backward()  # type: ignore[no-untyped-call]
        return Step(loss.detach())

    def cross_entropies(
        self,
        outputs: Outputs,
        head: str,
        labels: torch.Tensor,
        step: int,
        rows: slice = slice(None),
    ) -> torch.Tensor:
        """Compute the cross-entropy of each of these rows of a head's outputs, (len(labels),)."""
        logits = fitting_logits(outputs, head, labels, step, rows)
        smoothing = self.label_smoothing
        return cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs beyond weights and step, as plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned; called after `prepare`.

        Raises:
            ValueError: It is the state of another method.
        """
        if state.keys() != self.state_dict().keys():
            raise ValueError(
                f"{self.name} has no state of {', '.join(state) or 'nothing'}; resume with the "
                "method that the training began with"
            )


def images_and_labels(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Check that a batch is one of a single domain, and return its images and labels.

    Raises:
        ValueError: The batch is of another kind.
    """
    named = isinstance(batch, (MixedBatch, PairedBatch))
    if named or not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(
            f"the batch is a {type(batch).__name__}, and this phase takes (images, labels) of one "
            "domain, as ImageLoader gives them"
        )
    return batch[0], batch[1]


def batch_of(kind: type[T], batch: Any) -> T:
    """Check that a batch of two domains is of a kind, mixed or paired, and return it.

    Raises:
        ValueError: The batch is of another kind.
    """
    if not isinstance(batch, kind):
        raise ValueError(
            f"the batch is a {type(batch).__name__}, and this phase takes a {kind.__name__}, as "
            f"XMixLoader gives it with mix={kind is MixedBatch}"
        )
    return batch


def fitting_logits(
    outputs: Outputs, head: str, labels: torch.Tensor, step: int, rows: slice = slice(None)
) -> torch.Tensor:
    """Return rows of the logits of the ``"target"`` or ``"source"`` head, which fit the labels.

    Raises:
        ValueError: The labels do not fit the rows; or, looked at on the CPU and in step 0, the
            head has too few outputs for them.
    """
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
    """Raise `ValueError` where a head has too few outputs for the labels; waits for a GPU."""
    highest = int(labels.max()) if len(labels) else -1
    if highest >= logits.shape[1]:
        raise ValueError(
            f"{head} label {highest} does not fit a {head} head of {logits.shape[1]} outputs; "
            f"make it with the loader's num_{head}_classes"
        )


def head_logits(outputs: Outputs, head: str) -> torch.Tensor:
    """Return the logits of the ``"target"`` or ``"source"`` head.

    Raises:
        ValueError: The network has no such head.
    """
    logits = outputs.target_logits if head == "target" else outputs.source_logits
    if logits is None:
        raise ValueError(f"the network has no {head} head; give TransferNetwork a {head}_head")
    return logits


def not_negative(name: str, value: float) -> None:
    """Check that an option is a finite number of at least 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a number of at least 0")


def positive(name: str, value: float) -> None:
    """Check that an option is a finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a number above 0")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Check that an option is one of the known words."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be {' or '.join(map(repr, known))}")
