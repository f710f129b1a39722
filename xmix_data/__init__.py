"""Cross-domain mixup (XMixup, arXiv 2007.10252) at the cost of plain fine-tuning.

Every target image arrives already mixed, on the device, with a random image of the source class
paired with its own class. Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmix_data.batch import MixedBatch, PairedBatch
    from xmix_data.beton import Beton, write_beton
    from xmix_data.errors import (
        BetonError,
        DatasetError,
        ImageError,
        MissingDependencyError,
        PreemptedError,
        XMixError,
    )
    from xmix_data.features import class_centroids
    from xmix_data.loader import ImageLoader, XMixLoader
    from xmix_data.methods import JointHead, xmixup_loss
    from xmix_data.normalise import IMAGENET_MEAN, IMAGENET_STD
    from xmix_data.pairing import Centroids, PairedClass, Pairing, pair_classes
    from xmix_data.plan import CenterCrop, RandomCrop, RandomResizedCrop

    __version__: str

_MODULE_OF = {
    "BetonError": "errors",
    "Beton": "beton",
    "CenterCrop": "plan",
    "Centroids": "pairing",
    "DatasetError": "errors",
    "IMAGENET_MEAN": "normalise",
    "IMAGENET_STD": "normalise",
    "ImageError": "errors",
    "ImageLoader": "loader",
    "JointHead": "methods",
    "MissingDependencyError": "errors",
    "MixedBatch": "batch",
    "PairedBatch": "batch",
    "PairedClass": "pairing",
    "Pairing": "pairing",
    "PreemptedError": "errors",
    "RandomCrop": "plan",
    "RandomResizedCrop": "plan",
    "XMixError": "errors",
    "XMixLoader": "loader",
    "class_centroids": "features",
    "pair_classes": "pairing",
    "write_beton": "beton",
    "xmixup_loss": "methods",
}

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Beton",
    "BetonError",
    "CenterCrop",
    "Centroids",
    "DatasetError",
    "ImageError",
    "ImageLoader",
    "JointHead",
    "MissingDependencyError",
    "MixedBatch",
    "PairedBatch",
    "PairedClass",
    "Pairing",
    "PreemptedError",
    "RandomCrop",
    "RandomResizedCrop",
    "XMixError",
    "XMixLoader",
    "class_centroids",
    "methods",
    "pair_classes",
    "write_beton",
    "xmixup_loss",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"xmix_data.{_MODULE_OF[name]}"), name)
    elif name == "methods":
        value = importlib.import_module("xmix_data.methods")
    elif name == "__version__":
        value = importlib.import_module("xmix_data.version").VERSION
    else:
        raise AttributeError(f"module 'xmix_data' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
