"""What numba's Python lacks, in LLVM's terms: addresses, stores past the caches, C functions.

The functions of `_jpeg.c` are given to LLVM by address.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xmix_data.compiled import kernel
from xmix_data.jpeg import library

__all__ = [
    "ALIGNED",
    "MIRRORED",
    "address_of",
    "bytes_at",
    "clock_gettime",
    "jpeg_close",
    "jpeg_open",
    "jpeg_read",
    "madvise",
    "memcpy",
    "mirror_16",
    "stream_32",
    "stream_mirrored_16",
]


ALIGNED = 32
"""Number of bytes written past the caches at a time, at addresses that are multiples of it."""


for _name in ("open", "read", "close"):
    # By address: loading the library into LLVM would show its libjpeg to all other libraries.
    llvmlite.binding.add_symbol(
        f"xmix_jpeg_{_name}", ctypes.cast(library()[f"xmix_jpeg_{_name}"], ctypes.c_void_p).value
    )
_i64 = types.int64
jpeg_open: Any = types.ExternalFunction("xmix_jpeg_open", types.int32(*[_i64] * 10))
jpeg_read: Any = types.ExternalFunction("xmix_jpeg_read", types.int32(*[_i64] * 3))
jpeg_close: Any = types.ExternalFunction("xmix_jpeg_close", types.int32(_i64))
memcpy: Any = types.ExternalFunction("memcpy", _i64(_i64, _i64, _i64))
madvise: Any = types.ExternalFunction("madvise", types.int32(_i64, _i64, types.int32))
clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, _i64))


def _pointer_to_bytes(typing_context: Any, address: Any) -> Any:
    """Turn an address into a pointer."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(_i64), codegen


def _copy_past_the_caches(typing_context: Any, to: Any, at: Any) -> Any:
    """Copy `ALIGNED` bytes to an aligned address without reading its cache line first."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), ALIGNED).as_pointer()
        target, source = (builder.inttoptr(x, kind) for x in arguments)
        store = builder.store(builder.load(source, align=1), target, align=ALIGNED)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(_i64, _i64), codegen


MIRRORED = 16
"""Number of pixels mirrored at a time."""


def _mirror_pixels(past_the_caches: bool) -> Any:
    """Make an intrinsic that copies `MIRRORED` pixels of three bytes in reverse order."""

    def copy(typing_context: Any, to: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            count = 3 * MIRRORED
            kind = ir.VectorType(ir.IntType(8), count)
            target, source = (builder.inttoptr(x, kind.as_pointer()) for x in arguments)
            pixels = builder.load(source, align=1)
            order = [count - 3 - x + 2 * (x % 3) for x in range(count)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), count), order)
            mirrored = builder.shuffle_vector(pixels, ir.Constant(kind, ir.Undefined), mask)
            store = builder.store(mirrored, target, align=MIRRORED if past_the_caches else 1)
            if past_the_caches:
                store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
            return context.get_dummy_value()

        return types.void(_i64, _i64), codegen

    return intrinsic(copy)


mirror_16: Any = _mirror_pixels(past_the_caches=False)
stream_mirrored_16: Any = _mirror_pixels(past_the_caches=True)
_as_pointer: Any = intrinsic(_pointer_to_bytes)
stream_32: Any = intrinsic(_copy_past_the_caches)
_carray: Any = numba.carray  # type: ignore[attr-defined]


@kernel
def bytes_at(address: int, count: int) -> Any:
    """View memory that somebody else owns as an array (count,) uint8."""
    return _carray(_as_pointer(address), (count,), np.uint8)


@kernel
def address_of(array: Any) -> Any:
    """Return the address of an array's first byte."""
    return np.int64(array.ctypes.data)
