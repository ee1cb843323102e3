"""Random numbers that depend on a seed and on names only: the same on every machine and in every order.

>>> float(generator(7, "layer").initial_seed()) == float(generator(7, "layer").initial_seed())
True
>>> generator(7, "layer").initial_seed() == generator(7, "other").initial_seed()
False
"""

import torch

from confide import canonical


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed from a run's seed and the names of what it is for."""
    digest = canonical.hash_fields("confide/v1/seed", str(seed).encode(), *(str(name).encode() for name in names))
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one named purpose. Not for privacy noise, which comes from a CSPRNG."""
    return torch.Generator().manual_seed(derive(seed, *names))


def uniform(seed: int, name: str, shape: tuple[int, ...], bound: float) -> torch.Tensor:
    """float32 in [-bound, bound). Integer arithmetic and one rounding: bit-equal on every processor, unlike normals."""
    return (torch.rand(shape, generator=generator(seed, name)) * 2 - 1) * bound
