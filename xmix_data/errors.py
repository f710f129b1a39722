"""The project's own exceptions; every message says what, where, and what to do about it."""

__all__ = ["BetonError", "ImageError", "MissingDependencyError", "XMixError"]


class XMixError(Exception):
    """Base of every exception that is xmix_data's own."""


class ImageError(XMixError, ValueError):
    """An image of a conversion's source cannot be read; names the file or index."""


class BetonError(XMixError, ValueError):
    """A beton or its manifest is damaged, unfinished or of another kind; names file and index."""


class MissingDependencyError(XMixError, ImportError):
    """A package or system library is missing; names it and the command that installs it."""
