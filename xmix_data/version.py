"""The version of xmix_data, known also where the package lies in a folder and is not installed."""

from __future__ import annotations

__all__ = ["VERSION"]

VERSION = "0.1.0"
