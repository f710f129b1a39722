"""Pairing: which source classes each target class is mixed with (XMixup, Eqs. 1 and 2).

Comes in: features, summed to class centroids. Goes out: a `Pairing`, kept as JSON, which names
classes; and its class ids in given betons.
"""

from xmix_data.pairing.centroids import Centroids, CentroidSum
from xmix_data.pairing.ids import Draw
from xmix_data.pairing.pair import check_options, needs_features, pair_classes, pairs_table
from xmix_data.pairing.paired import PairedClass, Similarity, shown_classes
from xmix_data.pairing.pairing import Pairing, log_provenance, open_pairing

__all__ = [
    "CentroidSum",
    "Centroids",
    "Draw",
    "PairedClass",
    "Pairing",
    "Similarity",
    "check_options",
    "log_provenance",
    "needs_features",
    "open_pairing",
    "pair_classes",
    "pairs_table",
    "shown_classes",
]
