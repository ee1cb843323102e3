"""Confide's own codec and ring under measurement: real uploads of n nodes, one running sum, the protocol's masks."""

import hashlib
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from confide.codec.digest import DigestedFile, upload_digest
from confide.codec.keystream import Keystream
from confide.codec.layout import TILE, VectorLayout
from confide.codec.seal_vector import UploadSum, encode_upload
from confide.sealing.collector.uploads import UploadStore
from confide.sealing.primitives.keys import pairwise_mask, public_of
from numpy.typing import NDArray

from confide_simulations.benchmarks.meta import cpu_seconds, peak_mib

_CLIP = 1.0


def seed_of(*names: object) -> bytes:
    """A made-up 32-byte key."""
    return hashlib.sha256(repr(names).encode()).digest()


def layout_of(params: int, nodes: int, bits: int) -> VectorLayout:
    """Two exact scalars stand for the weight and one metric."""
    return VectorLayout(
        parameters=params, scalars=2, bits=bits, members=nodes, clip=_CLIP, rotation_seed=seed_of("rotation")
    )


def masks_of(node: int, nodes: int) -> list[tuple[bytes, int]]:
    """A node's self mask and its signed pairwise masks."""
    pairwise = [(seed_of(min(node, j), max(node, j)), 1 if node < j else -1) for j in range(nodes) if j != node]
    return [(seed_of("self", node), 1), *pairwise]


class OurSlot:
    """One slot's uploads, made once: each making is a sample of the client's cost."""

    def __init__(self, update: NDArray[np.float32], nodes: int, bits: int, folder: Path) -> None:
        self._update, self._nodes, self._folder = update, nodes, folder
        self.layout = layout_of(update.size, nodes, bits)
        self._digests: dict[int, bytes] = {}
        self._received: list[bytes] = []

    def encode(self, node: int) -> None:
        """All of a node's work on its update: norm, rotation, rounding, masks, packing, hash, file."""
        self._digests[node] = encode_upload(
            self._update, [node, 1], self.layout, rounding_key=seed_of("rounding", node),
            masks=masks_of(node, self._nodes), out=self._path(node),
        )  # fmt: skip

    def client_seconds(self, repetitions: int) -> float:
        """Median CPU seconds of `encode`."""
        self.encode(0)
        samples = [cpu_seconds(lambda node=node: self.encode(node)) for node in range(self._nodes)]  # type: ignore[misc]
        samples += [cpu_seconds(lambda: self.encode(0)) for _ in range(repetitions - self._nodes)]
        return statistics.median(samples)

    def arrive(self, dropped: int) -> None:
        """Put down the uploads as the transport does: files of their own, written from memory and not yet synced."""
        self._received = [self._path(node).read_bytes() for node in range(self._nodes - dropped)]
        for node, data in enumerate(self._received):
            self._arrived(node).write_bytes(data)

    def open(self, dropped: int) -> NDArray[np.float32]:
        """All of the coordinator's work on what arrived, the last `dropped` nodes missing. Checks the scalars.

        Each is hashed in memory, as the transport does it before it writes the file, and kept (linked, fsynced), then
        all are summed, and their files erased. For each who is missing the agreements with all others are made, which
        the protocol's run (nobody missing) does not have.
        """
        alive, missing = range(self._nodes - dropped), range(self._nodes - dropped, self._nodes)
        total, store, size = UploadSum(self.layout), UploadStore(self._folder / "kept"), self.layout.wire_bytes
        for node in alive:
            arrived = DigestedFile(self._arrived(node), upload_digest(self._received[node]))
            total.add(store.keep(1, str(node), arrived, self._digests[node], size), None)
            self._arrived(node).unlink()
            total.remove_mask(seed_of("self", node), 1)
        for gone in missing:
            secret = seed_of("secret", gone)
            public = public_of(secret)
            for node in alive:
                # The agreement's cost is real; the masks that were added are made up.
                pairwise_mask(secret, public, bytes(32), str(gone), str(node))
                total.remove_mask(seed_of(node, gone), 1)
        store.settle(1)
        vector, scalars = total.open(len(alive))
        store.erase(1)
        if scalars != [sum(alive), len(alive)]:
            raise AssertionError(f"the opened scalars are {scalars}")
        return vector

    def coordinator_seconds(self, drops: Sequence[int], repetitions: int) -> dict[int, float]:
        """Median CPU seconds of `open` by how many are missing, in turns; the first turn is not counted.

        Many turns: the same opening may cost a third more at one moment than at another.
        """
        samples: dict[int, list[float]] = {dropped: [] for dropped in drops}
        for _ in range(repetitions + 1):
            for dropped, taken in samples.items():
                self.arrive(dropped)
                taken.append(cpu_seconds(partial(self.open, dropped)))
        return {dropped: statistics.median(taken[1:]) for dropped, taken in samples.items()}

    def error(self, dropped: int) -> float:
        """L2 error of the opened mean relative to the clipping norm."""
        count = self._nodes - dropped
        self.arrive(dropped)
        return float(np.linalg.norm(self.open(dropped) / np.float32(count) - self._update) / _CLIP)

    def _path(self, node: int) -> Path:
        return self._folder / f"upload-{node}"

    def _arrived(self, node: int) -> Path:
        return self._folder / f"arrived-{node}"


def encoding_peak_mib(params: int, nodes: int, bits: int) -> float | None:
    """Highest memory of one encoding beyond the update itself."""
    with tempfile.TemporaryDirectory() as name:
        update = unit_update(params, seed=1)
        slot = OurSlot(update, nodes, bits, Path(name))
        OurSlot(update[:1000], nodes, bits, Path(name)).encode(0)
        return peak_mib(lambda: slot.encode(0))


def masking_seconds(params: int, masks: int, bits_of_lane: int, repetitions: int) -> tuple[float, float]:
    """(masking as the codec does it, physical floor), each in median CPU seconds, alternating.

    Floor: the keystreams of all masks by AES-256-CTR over one tile-sized buffer, and one add each, with nothing
    else in the loop: no keys to set up, no slices, one call per piece.
    """
    dtype = np.dtype("<u2" if bits_of_lane <= 16 else "<u4")
    lanes, stream = np.zeros(TILE, dtype), np.empty(TILE, dtype)
    tiles = max(1, params // TILE)

    def ours() -> None:
        keystreams = [Keystream(seed_of(i)) for i in range(masks)]
        for _ in range(tiles):
            for keystream in keystreams:
                np.add(lanes, keystream.fill(stream), out=lanes)

    scale = params / (tiles * TILE)
    samples = [(cpu_seconds(ours), _floor_once(lanes, stream, masks, tiles)) for _ in range(repetitions + 1)][1:]
    return tuple(statistics.median(column) * scale for column in zip(*samples, strict=True))


def _floor_once(
    lanes: NDArray[np.unsignedinteger], stream: NDArray[np.unsignedinteger], masks: int, tiles: int
) -> float:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
    zeros, target = bytes(stream.nbytes), stream.view("u1").data

    def floor() -> None:
        for _ in range(tiles * masks):
            encryptor.update_into(zeros, target)
            np.add(lanes, stream, out=lanes)

    return cpu_seconds(floor)


def thread_scaling(params: int, nodes: int, bits: int, threads: Sequence[int], folder: Path) -> list[dict[str, float]]:
    """Wall time of k encodings on k threads of one process: AES and the kernels release the interpreter lock."""
    update = unit_update(params, seed=2)
    rows: list[dict[str, float]] = []
    for count in threads:
        slots = [OurSlot(update, nodes, bits, folder / f"thread-{i}") for i in range(count)]
        for i in range(count):
            (folder / f"thread-{i}").mkdir(exist_ok=True)
        walls = []
        for _ in range(5):
            workers = [threading.Thread(target=slot.encode, args=(0,)) for slot in slots]
            start = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            walls.append(time.perf_counter() - start)
        wall = statistics.median(walls)
        rows.append({"threads": count, "wall_s": round(wall, 4), "encodings_per_s": round(count / wall, 3)})
    return rows


def unit_update(params: int, seed: int) -> NDArray[np.float32]:
    """Float32 Gaussian update of norm just below the clip."""
    update = np.random.default_rng(seed).standard_normal(params, dtype=np.float32)
    update *= np.float32(0.999 * _CLIP / max(1e-30, float(np.linalg.norm(update))))
    return update
