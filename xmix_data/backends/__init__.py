"""Backends: from the plan's rows to image tensors on the device.

`host` decodes with compiled kernels, `dali` lets NVIDIA DALI decode, `reference` is plain and slow:
it is what the others are held against. All follow one protocol and one plan.
"""

from xmix_data.backends.choice import AUTO, BACKENDS, PIXELS_PER_THREAD, choose, make_backend
from xmix_data.backends.device import in_one_copy
from xmix_data.backends.protocol import STREAM_STATS, Backend, ImageStream, Spec, replacement

__all__ = [
    "AUTO",
    "BACKENDS",
    "PIXELS_PER_THREAD",
    "STREAM_STATS",
    "Backend",
    "ImageStream",
    "Spec",
    "choose",
    "in_one_copy",
    "make_backend",
    "replacement",
]
