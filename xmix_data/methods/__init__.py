"""Transfer learning methods: each knows batches, never loaders or files."""

from xmix_data.methods.xmixup import xmixup_loss

__all__ = ["xmixup_loss"]
