"""Randomness that a resumed run repeats: one seed per micro-batch, a function of the position.

Jittor's generator can be set but not read, so its state cannot be saved; setting it anew from
(seed, position) before each micro-batch needs no saved state at all.
"""

from __future__ import annotations

import hashlib

import jittor as jt


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and Jittor; for set-up only (0.1 ms), steps use `reseed`."""
    # Of several processes all build the same weights.
    jt.set_global_seed(seed, different_seed_for_mpi=False)


def position_seed(seed: int, *position: int | str) -> int:
    """A seed in [0, 2**31) that depends on `seed` and every part of `position`.

    Independent of the process (unlike `hash` on strings) and of the platform.
    """
    text = repr((seed, *position)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little") >> 1


def reseed(seed: int, *position: int | str) -> None:
    """Set Jittor's generator for what follows; call it only where no operation is pending."""
    jt.set_seed(position_seed(seed, *position))
