"""GradMix: source gradients, weighted layer by layer (Li et al., WACV 2020, arXiv 2002.03264)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from xmix_data.backbones import in_eval_mode
from xmix_data.batch import PairedBatch
from xmix_data.methods.base import (
    Average,
    Method,
    Network,
    Phase,
    Step,
    batch_of,
    head_logits,
    positive,
)
from xmix_data.methods.cotrain import paired_losses
from xmix_data.methods.network import TransferNetwork

__all__ = ["GradMix"]

_TARGET, _PSEUDO, _FIRST_DOMAIN = range(3)
"""Groups of images: the target, pseudo-labelled ones, the source's domain 0, and so on."""
_MAX_DOMAINS = 256
"""Most source domains of a batch: processes tell each other how many images of each they have."""


@dataclass(eq=False)
class GradMix(Method):
    """Target gradient plus the source gradients that lower the target's loss, layer by layer.

    The paper's abstract fixes three things: weights for each source and layer, such that the
    combined gradient lowers the loss of target samples; a learning rate scaled for each batch by
    its importance to the target; pseudo-labels for unlabelled target images. The formulas are
    ours. For source k with gradient g_k and target gradient g_T of the mean losses, in layer l:

        raw[k, l] = max(0, <g_T[l], g_k[l]>)
        gradient[l] = g_T[l] + sum over k of raw[k, l] / (sum over k of raw[k, l]) * g_k[l]

    A look-ahead along ``sum over k of w[k, l] * g_k[l]`` changes the target's loss at the rate
    ``-raw[k, l]`` in w[k, l] where it helps: hence the weights. A layer in which no source helps
    takes g_T alone. With one source this is Co-Train, but for layers in which the two disagree.

    A layer is a module with parameters of its own: a convolution's weight and bias share a weight.
    What only sources use, their head, takes the gradient of its own mean loss. A source is a
    domain of ``batch.source_domains``; all share one head, with one softmax over their classes.

    The step is scaled by ``step_scale(importance)``: the sum of all raw weights, relative to its
    running mean. By default that is tanh(gamma * importance / 2), 0.46 in a typical batch.

    Of unlabelled images, those count whose softmax, averaged over the image and its mirror image
    (in evaluation mode), exceeds the threshold. They join as one more source, on the target head.

    One pass takes all images together, as in `CoTrain`, so that batch normalisation is the same
    for every source however few images it has; then there is one backward pass for the target and
    each source. Its gradients are its own: `backward` uses the module that was prepared, not a
    compiled or parallel wrapper of it, and ``average``.

    Args:
        gamma: How fast the step saturates with importance.
        pseudo_label_threshold: Probability above which a pseudo-label counts, in 0 .. 1; ``None``
            makes no use of unlabelled images.
        momentum: Weight of the past in the running mean, at least 0 and below 1.
        step_scale: Function from importance to the factor of the learning rate, instead of the
            formula above.

    Raises:
        ValueError: An option is impossible; in `backward`: nothing was prepared.
    """

    name: ClassVar[str] = "gradmix"
    gamma: float = 1.0
    pseudo_label_threshold: float | None = 0.9
    momentum: float = 0.9
    step_scale: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        positive("gamma", self.gamma)
        threshold = self.pseudo_label_threshold
        if threshold is not None and not 0 <= threshold < 1:
            raise ValueError(
                f"pseudo_label_threshold is {threshold}; it must be in 0 .. 1, or None"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")
        self._mean: float | None = None
        self._network: TransferNetwork | None = None
        self._shared: list[nn.Parameter] = []
        self._layers: list[range] = []
        """Positions of each layer's parameters in ``_shared``."""
        self._source_only: list[nn.Parameter] = []

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("paired", ("target", "source")),)

    @property
    def unlabelled(self) -> bool:
        return self.pseudo_label_threshold is not None

    def prepare(self, network: TransferNetwork, phase: Phase) -> None:
        super().prepare(network, phase)
        self._network, self._mean = network, None
        self._shared, self._layers, self._source_only = [], [], []
        seen: set[int] = set()
        for module in network.modules():
            # A parameter that several modules share belongs to the first.
            own = [p for p in module.parameters(recurse=False) if p.requires_grad]
            own = [p for p in own if id(p) not in seen]
            seen.update(map(id, own))
            if module is network.source_head:
                self._source_only = own
            elif own:
                self._layers.append(range(len(self._shared), len(self._shared) + len(own)))
                self._shared += own

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        """Compute Co-Train's loss, for comparison: `backward` fills in another gradient."""
        batch = batch_of(PairedBatch, batch)
        outputs = network(torch.cat([batch.target_images, batch.source_images]))
        target, source = paired_losses(self, outputs, batch, step)
        return target.mean() + source.mean()

    def backward(
        self,
        network: Network,
        batch: Any,
        *,
        step: int,
        unlabelled: torch.Tensor | None = None,
        average: Average | None = None,
    ) -> Step:
        bare = self._network
        if bare is None:
            raise ValueError("no network is known; call prepare(network, phase) first")
        batch = batch_of(PairedBatch, batch)
        images = [batch.target_images, batch.source_images]
        pseudo = batch.target_labels[:0]
        if unlabelled is not None and self.pseudo_label_threshold is not None:
            kept, pseudo = _pseudo_labels(bare, unlabelled, self.pseudo_label_threshold)
            images.append(kept)
        outputs = bare(torch.cat(images))
        target, source = paired_losses(self, outputs, batch, step)
        unsure = slice(2 * len(target), None)
        losses = torch.cat(
            [target, source, self.cross_entropies(outputs, "target", pseudo, step, unsure)]
        )
        groups = torch.cat(
            [
                torch.full_like(batch.target_labels, _TARGET),
                _FIRST_DOMAIN + batch.source_domains,
                torch.full_like(pseudo, _PSEUDO),
            ]
        )
        counts = _counts(groups, average)
        gradients = {}
        for group in counts:
            # The count is the mean over processes: dividing by it before the gradients are averaged
            # makes them those of the mean over all images of a group, wherever they are.
            loss = torch.where(groups == group, losses, 0).sum() / counts[group]
            gradients[group] = self._gradient(loss, group != max(counts), average)
        raw = self._combine(gradients)
        domains = {group: counts[group] for group in counts if group >= _FIRST_DOMAIN}
        for i, parameter in enumerate(self._source_only, start=len(self._shared)):
            shares = [gradients[g][i] * (n / sum(domains.values())) for g, n in domains.items()]
            parameter.grad = torch.stack(shares).sum(0)

        total = float(raw.sum())
        before = total if self._mean is None else self._mean
        self._mean = self.momentum * before + (1 - self.momentum) * total
        # Nothing has helped so far: such a batch is as good as any, not one to leave out.
        importance = total / self._mean if self._mean else 1.0
        scale = self.step_scale or (lambda x: math.tanh(self.gamma * x / 2))
        return Step(
            (target.mean() + source.mean()).detach(),
            scale(importance),
            {"importance": importance, "pseudo_labels": float(len(pseudo))},
        )

    def _gradient(
        self, loss: torch.Tensor, again: bool, average: Average | None
    ) -> list[torch.Tensor]:
        """Compute the gradients of the shared parameters, then of the source head's."""
        gradients = list(
            torch.autograd.grad(
                loss,
                [*self._shared, *self._source_only],
                retain_graph=again,
                allow_unused=True,
                materialize_grads=True,
            )
        )
        if average is not None:
            gradients = [gradient.contiguous() for gradient in gradients]
            average(gradients)
        return gradients

    def _combine(self, gradients: Mapping[int, Sequence[torch.Tensor]]) -> torch.Tensor:
        """Set ``.grad`` of the shared parameters, and return the raw weights (K, L)."""
        target = gradients[_TARGET]
        sources = [gradient for group, gradient in gradients.items() if group != _TARGET]
        raw = torch.stack([alignments(target, source, self._layers) for source in sources])
        raw = raw.clamp(min=0)
        weights = raw / raw.sum(0).clamp(min=torch.finfo(raw.dtype).tiny)
        for number, layer in enumerate(self._layers):
            for i in layer:
                combined = target[i]
                for weight, source in zip(weights, sources, strict=True):
                    combined = torch.addcmul(combined, source[i], weight[number])
                self._shared[i].grad = combined
        return raw

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._mean = state["mean"]


def alignments(
    target: Sequence[torch.Tensor], source: Sequence[torch.Tensor], layers: Sequence[range]
) -> torch.Tensor:
    """Compute the inner product of two gradients in each layer, (L,).

    Args:
        target, source: Gradients, a tensor for each parameter.
        layers: Positions of each layer's parameters in these sequences.
    """
    products = [(t * s).sum() for t, s in zip(target, source, strict=True)]
    return torch.stack([torch.stack([products[i] for i in layer]).sum() for layer in layers])


def _counts(groups: torch.Tensor, average: Average | None) -> dict[int, float]:
    """Count the images of each group, averaged over processes; leave out empty groups."""
    counts = torch.bincount(groups, minlength=_FIRST_DOMAIN + _MAX_DOMAINS).float()
    if len(counts) > _FIRST_DOMAIN + _MAX_DOMAINS:
        raise ValueError(
            f"the batch comes from source domain {len(counts) - 1 - _FIRST_DOMAIN}; GradMix takes "
            f"{_MAX_DOMAINS} domains, 0 .. {_MAX_DOMAINS - 1}"
        )
    if average is not None:
        average([counts])
    return {group: count for group, count in enumerate(counts.tolist()) if count}


@torch.no_grad()
def _pseudo_labels(
    network: TransferNetwork, images: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the images (K, 3, H, W) that the network is sure of, and their classes (K,)."""
    with in_eval_mode(network):
        logits = head_logits(network(torch.cat([images, images.flip(3)])), "target")
    # Older torch (pytorch#65766): autocast hands the training pass weights cast here, graphless.
    torch.clear_autocast_cache()
    chances = logits.float().softmax(1)
    probabilities, labels = ((chances[: len(images)] + chances[len(images) :]) / 2).max(1)
    sure = probabilities > threshold
    return images[sure], labels[sure]
