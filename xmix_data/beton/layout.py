"""FFCV's file format, version 2, little endian, as NumPy's types (docs/formats.md).

Header, field descriptors, sample metadata, pages of sample data, allocation table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = [
    "ALLOCATION",
    "FFCV_VERSION",
    "FIELD",
    "FIELD_METADATA",
    "HEADER",
    "IMAGE_FIELD",
    "INT_FIELD",
    "JPG",
    "MAX_PAGE_SIZE",
    "MIN_PAGE_SIZE",
    "RAW",
    "SAMPLE",
    "align",
    "content_hash",
]


HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_POINTER_AND_SIZE = np.dtype([("ptr", "<u8"), ("size", "<u8")])

FFCV_VERSION = 2
INT_FIELD, IMAGE_FIELD = 1, 2
FIELD_METADATA: Mapping[int, Any] = {
    0: "<f8",  # FloatField
    INT_FIELD: "<i8",
    IMAGE_FIELD: _IMAGE,
    3: _POINTER_AND_SIZE,  # BytesField
    4: "<u8",  # NDArrayField
    5: _POINTER_AND_SIZE,  # JSONField
    6: "<u8",  # TorchTensorField
}
SAMPLE = np.dtype([("f0", _IMAGE), ("f1", "<i8")], align=True)

MIN_PAGE_SIZE = 8 << 20
MAX_PAGE_SIZE = 1 << 31


def align(position: int, size: int) -> int:
    """Round ``position`` up to a multiple of ``size``."""
    return -(-position // size) * size


def content_hash(index_digest: Any, data_digest: Any) -> str:
    """Return one hash of a beton's index (header, fields, metadata, table) and its data."""
    both = index_digest.digest() + data_digest.digest()
    return f"sha256:{hashlib.sha256(both).hexdigest()}"


JPG, RAW = 0, 1
"""Modes of an image in FFCV's RGBImageField: JPEG stream, and RGB pixels."""
