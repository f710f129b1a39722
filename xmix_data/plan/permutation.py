"""The order of an epoch: a random permutation, of which each position is computed by itself.

Comes in: how many samples there are, and random bits. Goes out: for positions (B,) the places (B,)
of their samples, without memory or time for the others.

The permutation is the swap-or-not network of Hoang, Morris and Rogaway ("An enciphering scheme
based on a card shuffle", CRYPTO 2012), which takes any number of samples. Each round mirrors all
places about a random one and swaps each pair of mirrored places, or not, by a bit of their own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xmix_data.compiled import kernel

__all__ = ["ROUNDS", "WORDS_PER_ROUND", "SortedOrder", "SwapOrNot"]


ROUNDS = 64
"""Rounds of the network: with so many, up to 7 samples are in each order equally often to within
1e-13, and a round leaves a sample where it was with probability 1/2: all do for 2**-64."""
WORDS_PER_ROUND = 2
"""Random words of 64 bits that a round takes: the place to mirror about, and a key for its bits."""

_GAMMA, _FIRST, _SECOND = map(
    np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_SHIFT_30, _SHIFT_27, _TOP = map(np.uint64, (30, 27, 63))


class SwapOrNot:
    """A random permutation of 0 .. count - 1.

    Args:
        count: Number of samples, at least 1.
        bits: (ROUNDS, WORDS_PER_ROUND) random uint64.
    """

    def __init__(self, count: int, bits: npt.NDArray[np.uint64]) -> None:
        self._count = np.uint64(count)
        self._centres = bits[:, 0] % self._count
        self._keys = np.ascontiguousarray(bits[:, 1])

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the places (B,) int64 of positions (B,), each in 0 .. count - 1."""
        places = positions.astype(np.uint64)
        _swap_or_not(places, self._count, self._centres, self._keys)
        return places.view(np.int64)


@kernel
def _swap_or_not(places, count, centres, keys):  # type: ignore[no-untyped-def]
    for number in range(len(keys)):
        centre, key = centres[number], keys[number]
        for i in range(len(places)):
            place = places[i]
            mirrored = centre - place if centre >= place else centre + count - place
            # The bit of a pair is the first one of SplitMix64's output at the larger place.
            word = key + max(place, mirrored) * _GAMMA
            word = (word ^ (word >> _SHIFT_30)) * _FIRST
            word = (word ^ (word >> _SHIFT_27)) * _SECOND
            places[i] = mirrored if word >> _TOP else place


class SortedOrder:
    """The permutation of plans of version 1: where each place's random key comes in their order.

    Args:
        keys: (N,) random uint64. (Sorting them, as NumPy may change what `Generator.permutation`
            gives.)
    """

    def __init__(self, keys: npt.NDArray[np.uint64]) -> None:
        self._order = np.argsort(keys, kind="stable")

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the places (B,) int64 of positions (B,)."""
        return np.asarray(self._order[positions])
