"""A walk over a state folder: what in it could others read?"""

from pathlib import Path


def open_to_others(folder: Path) -> list[str]:
    """Every file and folder, the folder itself included, on which group or others have any right; links aside."""
    found = [folder, *folder.rglob("*")]
    return sorted(f"{path} {path.lstat().st_mode & 0o777:o}" for path in found if _is_open(path))


def _is_open(path: Path) -> bool:
    return not path.is_symlink() and bool(path.lstat().st_mode & 0o077)
