"""Failures inside torch as named errors, without text that could quote data: they travel to the coordinator."""

import contextlib
from collections.abc import Iterator

import torch
from confide.errors import ConfideError, TrainingError
from confide.runs.specification import Specification


@contextlib.contextmanager
def named_failures(specification: Specification) -> Iterator[None]:
    """Out of memory and other failures inside torch become named errors, without text that could quote data."""
    training = specification.training
    try:
        yield
    except ConfideError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(_out_of_memory(specification)) from error
    except RuntimeError as error:
        if "memory" in str(error) and ("alloc" in str(error) or "CUDA" in str(error)):
            raise TrainingError(_out_of_memory(specification)) from error
        where = "compiling or running the model" if training.compile else "running the model"
        raise TrainingError(f"{where} failed inside torch ({type(error).__name__}); see this node's log") from error


def _out_of_memory(specification: Specification) -> str:
    return (
        f"out of memory with training.micro_batch_size = {specification.training.micro_batch_size} and "
        f"method.max_length = {specification.method.max_length}; lower one, or set training.gradient_checkpointing"
    )
