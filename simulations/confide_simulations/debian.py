"""Real documents out of Debian's packages: fetched by apt-get, checked by SHA-256, unpacked into the cache.

They are there only on Debian 12 and only while its archive serves these versions: whoever uses them says so and goes on
without where they are not. No root is needed, and no code of theirs runs.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from confide.errors import DataError
from confide.files import sha256_file

from confide_simulations.assets import Say, cache_folder


@dataclass(frozen=True)
class DebianPackage:
    """One file of Debian's archive, pinned."""

    name: str
    version: str
    sha256: str
    licence: str


POLICY = DebianPackage(
    "debian-policy",
    "4.6.2.0",
    "ef9d01b625c3b87c3a845c2cd1b66f1a16e9240b2b9e5bee53472a00e8457a39",
    "GPL-2+",
)
PYTHON_DOC = DebianPackage(
    "python3.11-doc",
    "3.11.2-6+deb12u8",
    "50eb63e7f636c4281e9ce1b8f10386f1def42159eddce34fc1f41c46261df71b",
    "PSF-2",
)


def unpacked(package: DebianPackage, say: Say) -> Path:
    """The package's files as a folder in the cache, complete or absent. Raises DataError where they cannot be had."""
    target = cache_folder() / "debian" / package.sha256[:16]
    if target.exists():
        return target
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise DataError(f"{package.name} is a package of Debian 12, and this machine has no apt-get")
    say(f"fetching {package.name} {package.version} from Debian, licence {package.licence}")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        file = _downloaded(package, temporary)
        found = sha256_file(file)
        if found != package.sha256:
            raise DataError(f"{file.name} has SHA-256 {found}, expected {package.sha256}: it was thrown away")
        (temporary / "files").mkdir()
        subprocess.run(["dpkg-deb", "-x", file, temporary / "files"], check=True, capture_output=True)
        (temporary / "files").rename(target)
    except (OSError, subprocess.CalledProcessError) as error:
        if not target.exists():
            raise DataError(f"{package.name} could not be unpacked: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _downloaded(package: DebianPackage, folder: Path) -> Path:
    wanted = f"{package.name}={package.version}"
    done = subprocess.run(
        ["apt-get", "download", "-q", wanted], cwd=folder, capture_output=True, text=True, check=False
    )
    files = list(folder.glob("*.deb"))
    if done.returncode != 0 or len(files) != 1:
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise DataError(f"{wanted} could not be fetched: {reason}")
    return files[0]
