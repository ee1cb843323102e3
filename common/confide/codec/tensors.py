"""Named tensors as one flat vector and as checked raw bytes: little-endian float32 in schema order, no pickle.

>>> import torch
>>> schema = TensorSchema.of({"b": torch.zeros(2, 3), "a": torch.tensor(1.0)})
>>> schema.names, schema.size
(('a', 'b'), 7)
>>> tensors = schema.unflatten(schema.decode(schema.encode({"b": torch.ones(2, 3), "a": torch.tensor(2.0)})))
>>> float(tensors["a"]), tensors["b"].shape
(2.0, torch.Size([2, 3]))
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from confide import canonical
from confide.errors import UpdateError

if TYPE_CHECKING:
    import torch

_LOOKED_AT = 1 << 20
"""Scalars at a time."""


@dataclass(frozen=True)
class TensorSchema:
    """Names and shapes, sorted by name. What travels is float32 whatever the tensors' own dtype."""

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, "torch.Tensor"]) -> "TensorSchema":
        """The schema of these tensors; any shape, 0-d and empty ones included."""
        return cls(tuple((name, tuple(tensors[name].shape)) for name in sorted(tensors)))

    @classmethod
    def unnamed(cls, size: int) -> "TensorSchema":
        """A flat vector of which nothing but its length is known."""
        return cls((("", (size,)),))

    @classmethod
    def from_bytes(cls, data: bytes) -> "TensorSchema":
        """What `to_bytes` wrote. Raises UpdateError for anything else."""
        try:
            document = json.loads(data)
            entries = tuple((name, tuple(shape)) for name, shape in document)
            sound = all(
                isinstance(name, str) and all(type(n) is int and 0 <= n < 2**40 for n in shape)
                for name, shape in entries
            )
            schema = cls(entries)
            names = [name for name, _ in entries]
            sound = sound and names == sorted(set(names)) and schema.size < 2**40 and schema.to_bytes() == data
        except (ValueError, TypeError, RecursionError) as error:
            raise UpdateError("a schema came that is not a list of names and shapes") from error
        if not sound:
            raise UpdateError("a schema came whose names are not distinct and in order, or whose shapes are none")
        return schema

    def to_bytes(self) -> bytes:
        """Canonical bytes: names and shapes."""
        return canonical.encode([[name, list(shape)] for name, shape in self.entries])

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in order."""
        return tuple(name for name, _ in self.entries)

    @property
    def size(self) -> int:
        """Number of scalars in all."""
        return sum(math.prod(shape) for _, shape in self.entries)

    @property
    def digest(self) -> str:
        """SHA-256 over names and shapes, hex."""
        return canonical.digest([[name, list(shape)] for name, shape in self.entries])

    def flatten(self, tensors: Mapping[str, "torch.Tensor"]) -> NDArray[np.float32]:
        """One float32 vector of shape (size,). Raises UpdateError for a wrong name, shape or value."""
        import torch  # takes seconds: whoever only names or checks a model's bytes does without

        if set(tensors) != set(self.names):
            odd = sorted(set(tensors) ^ set(self.names))[:4]
            raise UpdateError(f"tensor names differ from the run's schema, for example {odd}")
        flat = np.empty(self.size, dtype="<f4")
        offset = 0
        for name, shape in self.entries:
            tensor = tensors[name]
            if tuple(tensor.shape) != shape:
                raise UpdateError(f"tensor {name!r} has shape {tuple(tensor.shape)}; the run's schema says {shape}")
            count = math.prod(shape)
            flat[offset : offset + count] = tensor.detach().to("cpu", torch.float32).reshape(-1).numpy()
            offset += count
        self._check_finite(flat)
        return flat

    def unflatten(self, flat: NDArray[np.floating]) -> dict[str, "torch.Tensor"]:
        """Tensors of the vector's dtype by name, each a copy. Raises UpdateError for a wrong length."""
        import torch

        if flat.shape != (self.size,):
            raise UpdateError(f"a vector of shape {flat.shape} came; the run's schema has {self.size} scalars")
        tensors: dict[str, torch.Tensor] = {}
        offset = 0
        for name, shape in self.entries:
            count = math.prod(shape)
            tensors[name] = torch.from_numpy(flat[offset : offset + count].copy()).reshape(shape)
            offset += count
        return tensors

    def encode(self, tensors: Mapping[str, "torch.Tensor"]) -> bytes:
        """Raw little-endian float32 bytes in schema order."""
        return self.flatten(tensors).tobytes()

    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """(offset in the flat vector, shape) of each tensor."""
        found: dict[str, tuple[int, tuple[int, ...]]] = {}
        offset = 0
        for name, shape in self.entries:
            found[name] = (offset, shape)
            offset += math.prod(shape)
        return found

    def decode(self, data: bytes | memoryview) -> NDArray[np.float32]:
        """The flat vector that `encode` wrote. Raises UpdateError when truncated, too long, or not finite."""
        if len(data) != 4 * self.size:
            raise UpdateError(f"{len(data)} bytes came; {self.size} float32 scalars take {4 * self.size}")
        flat = np.frombuffer(data, dtype="<f4")
        self._check_finite(flat)
        return flat

    def _check_finite(self, flat: NDArray[np.float32]) -> None:
        position = first_not_finite(flat)
        if position is None:
            return
        for name, shape in self.entries:
            count = math.prod(shape)
            if position < count:
                raise UpdateError(f"tensor {name!r} holds NaN or infinity; nothing of it is used")
            position -= count


def first_not_finite(flat: NDArray[np.float32]) -> int | None:
    """Where the first NaN or infinity stands; None without one. Looks at a part at a time, also of a view on a file.

    >>> first_not_finite(np.array([0, 1, np.inf], np.float32)), first_not_finite(np.zeros(3, np.float32))
    (2, None)
    """
    for start in range(0, len(flat), _LOOKED_AT):
        finite = np.isfinite(flat[start : start + _LOOKED_AT])
        if not finite.all():
            return start + int(np.argmin(finite))
    return None


def model_digest(data: bytes | memoryview) -> bytes:
    """SHA-256 that names a model's trainable tensors: over a domain and their raw bytes.

    The schema is not hashed again: the specification and the base model's hash fix it, and both are signed.
    """
    return canonical.hash_fields("confide/v1/model", hashlib.sha256(data).digest())
