"""One linear layer over both label sets, which says the target's classes alone when it is asked.

Comes in: features (B, D). Goes out: logits (B, n + m) in training, (B, n) in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from xmix_data.backbones import output_layer, put_in_place
from xmix_data.methods.network import maker, source_head
from xmix_data.options import whole_number

__all__ = ["JointHead"]


class JointHead(nn.Linear):
    """Classifier of target and source classes in one: n + m logits in training mode, n in eval.

    Put in the place of a network's classifier it leaves a training loop as it was: the criterion
    gets logits for the soft labels of ``XMixLoader(labels="soft")``; metrics, averaged weights
    and ``argmax`` in evaluation see a classifier of the target. The module's mode decides, not
    gradients; what traces (`torch.fx`, `torch.jit.trace`) keeps the mode that it saw. The target's
    block comes first, as in `MixedBatch.soft_labels`. A state dict has the rows of both blocks:
    `to_linear` ends a training with the target's alone.

    Args:
        features: Number D of features.
        num_target: Number n of target classes, the loader's ``num_target_classes``.
        num_source: Number m of source classes, the loader's ``num_source_classes``.
        bias: Whether the layer has a bias.
        device, dtype: As of `torch.nn.Linear`.

    Raises:
        ValueError: A number is no whole number of at least 1.

    Examples:
        >>> head = JointHead(512, num_target=4, num_source=6)
        >>> head(torch.zeros(8, 512)).shape, head.eval()(torch.zeros(8, 512)).shape
        (torch.Size([8, 10]), torch.Size([8, 4]))
    """

    def __init__(
        self,
        features: int,
        num_target: int,
        num_source: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (
            ("features", features),
            ("num_target", num_target),
            ("num_source", num_source),
        ):
            whole_number(name, value, 1)
        super().__init__(features, num_target + num_source, bias, device, dtype)
        self.num_target = num_target
        """Number n of target classes."""
        self.num_source = num_source
        """Number m of source classes."""

    @classmethod
    def from_linear(
        cls,
        classifier: nn.Linear,
        num_target: int,
        *,
        class_names: Sequence[str] | None = None,
        rows: Sequence[int] | None = None,
    ) -> JointHead:
        """Make a head whose source block starts from a pre-trained classifier.

        Args:
            classifier: The layer D -> classes that the pre-trained network ends in.
            num_target: Number n of target classes; their block starts as `torch.nn.Linear` does.
            class_names: Names of the m source classes, by id. Those that begin with a WordNet id of
                ImageNet start from its row, see `source_head`. ``None``, without ``rows`` too: the
                source classes are the classifier's.
            rows: For each source class the classifier's row that means the same.

        Returns:
            A head with the classifier's dtype, device, and bias or none.

        Raises:
            ValueError: ``rows`` do not fit, or the classifier is another kind of module.

        Examples:
            >>> old = torch.nn.Linear(512, 1000)  # of a network pre-trained on the source
            >>> head = JointHead.from_linear(old, num_target=4)
            >>> torch.equal(head.weight[4:], old.weight)
            True
        """
        if not isinstance(classifier, nn.Linear):
            raise ValueError(
                f"classifier is a {type(classifier).__name__}; give the torch.nn.Linear that the "
                "network ends in, e.g. model.classifier[-1]"
            )
        features = classifier.in_features
        if rows is None and class_names is None:
            rows = range(classifier.out_features)
        if class_names is None and rows is not None:
            class_names = [str(row) for row in rows]
        assert class_names is not None
        source = source_head(classifier, features, class_names, rows)
        head = cls(
            features,
            num_target,
            len(class_names),
            bias=source.bias is not None,
            device=source.weight.device,
            dtype=source.weight.dtype,
        )
        with torch.no_grad():
            head.weight[num_target:] = source.weight
            if source.bias is not None:
                head.bias[num_target:] = source.bias
        return head

    @classmethod
    def replace_classifier(
        cls,
        network: nn.Module,
        num_target: int,
        num_source: int,
        size: int | tuple[int, int] = 224,
    ) -> JointHead:
        """Put a new head in the place of the linear layer that makes a network's output.

        Networks name that layer differently; it is found by the forward pass of one black image,
        see `xmix_data.backbones.output_layer`. Call it before the optimizer gets the parameters.
        Where the old layer has n outputs, they are taken for the target's, as your code would go on
        with them; the other rows start as `torch.nn.Linear` does.

        Args:
            network: A classifier of any making, changed in place.
            num_target: Number n of target classes.
            num_source: Number m of source classes.
            size: Side in pixels of an image that the network takes, or (height, width).

        Returns:
            The head, with the old layer's dtype, device, mode, and bias or none.

        Raises:
            ValueError: The network does not take the image, or no linear layer makes its output;
                it is wrapped for distributed training already.

        Examples:
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 1000))
            >>> JointHead.replace_classifier(network, num_target=4, num_source=6, size=8)
            JointHead(features=192, num_target=4, num_source=6, bias=True)
            >>> network(torch.zeros(2, 3, 8, 8)).shape
            torch.Size([2, 10])
        """
        if isinstance(network, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "the network is in DistributedDataParallel already, which would not see the new "
                "layer; replace the classifier before"
            )
        name, old = output_layer(network, size)
        if not isinstance(old, nn.Linear) or not name:
            raise ValueError(
                f"the output of {type(network).__name__} must come from one linear layer inside "
                f"it, and {maker(name, old)} makes it; put a JointHead in the place of the "
                "torch.nn.Linear that classifies, by its name"
            )
        weight = old.weight
        head = cls(
            old.in_features,
            num_target,
            num_source,
            bias=old.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        if num_target == (old.num_target if isinstance(old, JointHead) else old.out_features):
            with torch.no_grad():
                head.weight[:num_target] = weight[:num_target]
                if old.bias is not None:
                    head.bias[:num_target] = old.bias[:num_target]
        put_in_place(network, old, head.train(old.training))
        return head

    def to_linear(self, network: nn.Module | None = None) -> nn.Linear:
        """Make a plain layer of the target's rows, for what is saved and used without this package.

        Args:
            network: A network that has this head; the layer takes its place there.

        Returns:
            A layer D -> n, a copy with the head's dtype, device, and bias or none; in evaluation
            mode its logits are the head's.

        Raises:
            ValueError: The network has another head, as a copy of a network has.

        Examples:
            >>> head = JointHead(512, num_target=4, num_source=6)
            >>> head.to_linear()
            Linear(in_features=512, out_features=4, bias=True)
        """
        plain = nn.Linear(
            self.in_features,
            self.num_target,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        with torch.no_grad():
            plain.weight.copy_(self.weight[: self.num_target])
            if self.bias is not None:
                plain.bias.copy_(self.bias[: self.num_target])
        if network is not None and not put_in_place(network, self, plain.train(self.training)):
            raise ValueError(
                f"this head is no part of the {type(network).__name__}; a copy of a network has a "
                "head of its own: call to_linear of that one"
            )
        return plain

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            return nn.functional.linear(input, self.weight, self.bias)
        bias = None if self.bias is None else self.bias[: self.num_target]
        return nn.functional.linear(input, self.weight[: self.num_target], bias)

    def extra_repr(self) -> str:
        return (
            f"features={self.in_features}, num_target={self.num_target}, "
            f"num_source={self.num_source}, bias={self.bias is not None}"
        )
