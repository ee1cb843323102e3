"""Slow, obvious implementations of what layout.py and keystream.py specify, sharing no code with the codec."""

import itertools
from pathlib import Path

import numpy as np
from confide.codec.layout import VectorLayout
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from scipy.linalg import hadamard


def bits_of_groups(lanes: NDArray[np.unsignedinteger], lane_bits: int) -> bytes:
    """The packing of layout.py, word by word with Python's integers."""
    word_bits = 8 * lanes.itemsize
    columns = 1024 // word_bits
    out = b""
    for group in lanes.reshape(-1, word_bits, columns):
        strings = [sum((int(v) % 2**lane_bits) << (lane_bits * row) for row, v in enumerate(c)) for c in group.T]
        for i, j in itertools.product(range(lane_bits), range(columns)):
            out += (strings[j] >> (word_bits * i) & (2**word_bits - 1)).to_bytes(word_bits // 8, "little")
    return out


def counter_stream(key: bytes, count: int) -> bytes:
    """AES-256-CTR from single encrypted blocks."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  (the oracle of one block)
    blocks = b"".join(i.to_bytes(16, "big") for i in range(-(-count // 16)))
    return encryptor.update(blocks)[:count]


def dense_rotation(update: NDArray[np.float32], made: VectorLayout) -> NDArray[np.float64]:
    """layout.py's rotation with matrices: signs, 4-point transform over column groups, 1024-point over rows."""
    matrix = np.zeros(made.coordinates)
    matrix[: made.parameters] = update
    matrix = matrix.reshape(1024, made.columns)
    signs = np.frombuffer(counter_stream(made.rotation_seed, 8192 * (-(-made.columns // 64))), dtype="<u8").reshape(
        -1, 1024
    )
    lanes = []
    for tile, start in enumerate(range(0, made.columns, 64)):
        part = matrix[:, start : start + 64].copy()
        width = part.shape[1]
        flips = signs[tile][:, None] >> np.arange(width, dtype=np.uint64) & np.uint64(1)
        part *= 1.0 - 2.0 * flips
        group = width // 4
        mixed = part[:, : 4 * group].reshape(1024, 4, group)
        part[:, : 4 * group] = np.einsum("ij,rjg->rig", hadamard(4) / 2, mixed).reshape(1024, 4 * group)
        lanes.append((hadamard(1024) / 32 @ part).reshape(-1))
    return np.concatenate(lanes) if lanes else np.empty(0)


def unpacked(path: Path, made: VectorLayout) -> NDArray[np.int64]:
    """An upload's lanes as signed integers, through Python's integers."""
    word_bits, lane_bits = 8 * made.lane_dtype.itemsize, made.lane_bits
    words = np.frombuffer(path.read_bytes(), dtype=made.lane_dtype).reshape(-1, lane_bits, 1024 // word_bits)
    lanes = np.empty((len(words), word_bits, 1024 // word_bits), dtype=np.int64)
    for group, rows in enumerate(words):
        for column in range(1024 // word_bits):
            string = sum(int(word) << (word_bits * i) for i, word in enumerate(rows[:, column]))
            lanes[group, :, column] = [string >> (lane_bits * i) & (2**lane_bits - 1) for i in range(word_bits)]
    flat = lanes.reshape(-1)
    return np.where(flat >= 2 ** (lane_bits - 1), flat - 2**lane_bits, flat)
