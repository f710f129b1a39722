"""Transfer learning methods: each knows batches, never loaders or files."""

from __future__ import annotations

from collections.abc import Mapping

from xmix_data.methods.base import Method, Phase, Step
from xmix_data.methods.bss import BSS
from xmix_data.methods.cotrain import CoTrain
from xmix_data.methods.cotuning import CoTuning
from xmix_data.methods.delta import DELTA
from xmix_data.methods.finetune import FineTune
from xmix_data.methods.gradmix import GradMix
from xmix_data.methods.joint_head import JointHead
from xmix_data.methods.l2sp import L2SP
from xmix_data.methods.mixup import Mixup
from xmix_data.methods.network import Outputs, TransferNetwork, source_head, split_classifier
from xmix_data.methods.seqtrain import SeqTrain
from xmix_data.methods.xmixup import XMixup, xmixup_loss

__all__ = [
    "BSS",
    "DELTA",
    "L2SP",
    "METHODS",
    "CoTrain",
    "CoTuning",
    "FineTune",
    "GradMix",
    "JointHead",
    "Method",
    "Mixup",
    "Outputs",
    "Phase",
    "SeqTrain",
    "Step",
    "TransferNetwork",
    "XMixup",
    "source_head",
    "split_classifier",
    "xmixup_loss",
]

METHODS: Mapping[str, type[Method]] = {
    method.name: method
    for method in (FineTune, L2SP, BSS, DELTA, CoTuning, SeqTrain, CoTrain, Mixup, XMixup, GradMix)
}
"""Class of each method, by its name on the command line."""
