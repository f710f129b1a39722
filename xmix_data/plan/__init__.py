"""Everything random about an epoch, decided in advance: which images, which λ, which crops.

Comes in: (seed, epoch) and positions in the epoch. Goes out: `PlanRows`, the same for any batch
size, thread count, prefetch, rank or backend.
"""

from xmix_data.plan.build import check_beta, image_plan, paired_plan, with_crop, with_mix
from xmix_data.plan.crops import CenterCrop, Crop, RandomCrop, RandomResizedCrop
from xmix_data.plan.epoch import VERSIONS, EpochPlan, Epochs, Plan
from xmix_data.plan.pool import SourcePool
from xmix_data.plan.rows import SOURCE, TARGET, Crops, ImageSizes, PlanRows, Replace

__all__ = [
    "SOURCE",
    "TARGET",
    "VERSIONS",
    "CenterCrop",
    "Crop",
    "Crops",
    "EpochPlan",
    "Epochs",
    "ImageSizes",
    "Plan",
    "PlanRows",
    "RandomCrop",
    "RandomResizedCrop",
    "Replace",
    "SourcePool",
    "check_beta",
    "image_plan",
    "paired_plan",
    "with_crop",
    "with_mix",
]
