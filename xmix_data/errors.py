"""The project's own exceptions; every message says what, where, and what to do about it."""

__all__ = [
    "BetonError",
    "DatasetError",
    "ImageError",
    "MissingDependencyError",
    "PreemptedError",
    "XMixError",
    "first_line",
]


class XMixError(Exception):
    """Base class of all exceptions that xmix_data defines."""


class ImageError(XMixError, ValueError):
    """Error about an image of a conversion's source that cannot be read; names file or index."""


class DatasetError(ImageError):
    """Error about a conversion's dataset: its samples are no images with their classes.

    It names the index. No image is to blame, so ``on_error="skip"`` does not pass over it.
    """


class BetonError(XMixError, ValueError):
    """Error about a damaged, unfinished or foreign beton or manifest; names file and index."""


class PreemptedError(XMixError):
    """Training that SIGTERM ended after a step, with a checkpoint from which it goes on."""


class MissingDependencyError(XMixError, ImportError):
    """Error about a missing package or system library; names it and what installs it."""


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, for a message that names more."""
    return (str(error) or type(error).__name__).splitlines()[0]
