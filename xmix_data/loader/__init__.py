"""The loaders: epochs, positions, ranks and lifetimes around a plan and a backend."""

from xmix_data.loader.loaders import ImageLoader, XMixLoader

__all__ = ["ImageLoader", "XMixLoader"]
