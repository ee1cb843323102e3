"""What a run's training keeps on this node's disk from round to round: one file a kind and round.

Optimizer state and unexchanged fragments are made of the data, so whatever later leaves depends on them. Under record-
and user-level privacy they may therefore go on only from work that the ledger was charged for.

>>> path_of(Path("training"), OPTIMIZER, 3).name
'optimizer-000003.safetensors'
"""

from pathlib import Path

CHECKPOINT = "slot.safetensors"
"""Where the open slot's training stands (training/checkpoint.py)."""
OPTIMIZER, VALUES = "optimizer-{}.safetensors", "values-{}.f32"


def path_of(folder: Path, kind: str, round: int) -> Path:
    """The file of a round. Names sort as rounds do."""
    return folder / kind.format(f"{round:06d}")


def rounds_of(folder: Path, kind: str) -> list[Path]:
    """All files of a kind, oldest first."""
    return sorted(folder.glob(kind.format("*")))


def forget_checkpoint(folder: Path) -> None:
    """Remove the open slot's checkpoint, whole or half written."""
    for path in (folder / CHECKPOINT, (folder / CHECKPOINT).with_suffix(".new")):
        path.unlink(missing_ok=True)


def forget_from(folder: Path, round: int) -> None:
    """Remove what `round` and later ones left. Training goes on from before it, or from what all nodes share."""
    for kind in (OPTIMIZER, VALUES):
        for path in rounds_of(folder, kind):
            if path >= path_of(folder, kind, round):
                path.unlink()
