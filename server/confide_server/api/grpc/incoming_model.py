"""A first model that comes in chunks: on disk while it is checked, in memory a mebibyte at a time.

model = IncomingModels(folder, max_bytes=8 << 30).receive(header.initial_model_bytes, chunks)
service.submit(Submission(signed, model))
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from confide.errors import RetryableError, TransportError
from confide.files import mapped, private_folder

CHUNK_BYTES = 1 << 20
MAX_MODEL_BYTES = 8 << 30


class IncomingModels:
    """Where models lie until their runs are submitted."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_MODEL_BYTES) -> None:
        """folder: made where it is missing; what lies in it has no name, and goes with the process."""
        self._folder = folder
        self._max_bytes = max_bytes

    def receive(self, declared: int, chunks: Iterator[bytes]) -> memoryview:
        """All the chunks as one view on a file. Raises TransportError unless they are exactly `declared` bytes."""
        if declared > self._max_bytes:
            raise TransportError(f"a first model of {declared} bytes is announced; at most {self._max_bytes} fit")
        try:
            with tempfile.TemporaryFile(dir=private_folder(self._folder)) as file:
                size = 0
                for chunk in chunks:
                    size += len(chunk)
                    if not 0 < len(chunk) <= CHUNK_BYTES or size > declared:
                        raise TransportError(
                            f"the first model does not come in chunks of 1..{CHUNK_BYTES} bytes as announced"
                        )
                    file.write(chunk)
                if size != declared:
                    raise TransportError(f"{size} of {declared} announced bytes of the first model came; submit again")
                return mapped(file)
        except OSError as error:
            raise RetryableError(
                f"the first model of {declared} bytes cannot be kept in {self._folder}: {error.strerror or error}. "
                "Free space at the coordinator, then submit again."
            ) from error
