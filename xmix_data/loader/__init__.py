"""The loaders: epochs, positions, ranks and lifetimes around a plan and a backend.

numba is loaded with them, and not with the first loader that is made: training scripts that replace
`print`, as torchvision's references do, would break it in between.
"""

import xmix_data.decode  # noqa: F401
from xmix_data.loader.loaders import ImageLoader, XMixLoader
from xmix_data.loader.options import usable_device

__all__ = ["ImageLoader", "XMixLoader", "usable_device"]
