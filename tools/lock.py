"""Write requirements/build.txt, lock.txt, cuda.txt and audit.txt: every pin with the SHA-256 of each of its files.

The versions are those of constraints.txt, and what they leave open is resolved by uv once for every Python and platform
(markers say where a package is not needed). What builds the few packages that have no wheel comes first, so that no
build fetches anything unchecked. The CUDA libraries stand in a file of their own: the registry's torch for Linux needs
them, the CPU build does not, and which of the two pip finds is known only where it is installed.

    make lock
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
EXTRAS = (
    "dev",
    "models",
    "simulation",
    "evaluation",
    "postgres",
    "pkcs11",
    "s3",
    "rlhf",
    "rag",
    "qdrant",
    "pgvector",
    "serving",
    "console",
    "telemetry",
)
CUDA = re.compile(r"(nvidia|cuda)-|triton==")
BUILD = re.compile(r"setuptools==")
HEADER = "# Made by `make lock` from pyproject.toml and constraints.txt. Do not edit.\n"


def resolve(source: str, *extras: str) -> str:
    """What uv makes of a file, in pip's format; ends the program with uv's own words where it cannot."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "-c", "constraints.txt"]
    for extra in extras:
        command += ["--extra", extra]
    done = subprocess.run([*command, source], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"error: uv could not resolve {source} under constraints.txt:\n{done.stderr}")
    return done.stdout


def entries(resolved: str) -> list[str]:
    """One string for each requirement: its pin with marker, and below it the hashes of its files."""
    return [found.strip() for found in re.split(r"\n(?=\S)", resolved) if found.strip()]


def with_cpu_builds(entry: str) -> str:
    """Torch's entry, accepting PyTorch's own CPU builds of that version as well as the registry's files."""
    version = entry.split()[0].removeprefix("torch==")
    listed = [line.split() for line in (FOLDER / "torch-cpu.sha256").read_text().splitlines()]
    digests = [digest for digest, name in listed if name.startswith(f"torch-{version}+cpu-")]
    if not digests:
        sys.exit(
            f"error: requirements/torch-cpu.sha256 names no CPU build of torch {version}; add those of "
            "https://download.pytorch.org/whl/cpu/torch/"
        )
    return " \\\n".join([entry, *(f"    --hash=sha256:{digest}" for digest in digests if digest not in entry)])


def cpu_build(entry: str) -> str:
    """The entry of PyTorch's CPU builds alone, which set-up tries first."""
    pin = entry.split()[0] + "+cpu"
    accepted = with_cpu_builds(pin.removesuffix("+cpu")).split(" \\\n")[1:]
    return " \\\n".join([pin, *accepted])


def main() -> None:
    """Resolve, and write the files."""
    found = resolve("pyproject.toml", *EXTRAS)
    resolved = [with_cpu_builds(entry) if entry.startswith("torch==") else entry for entry in entries(found)]
    found_torch = [entry for entry in entries(found) if entry.startswith("torch==")]
    files = {
        "build.txt": [entry for entry in resolved if BUILD.match(entry)],
        "lock.txt": [entry for entry in resolved if not CUDA.match(entry)],
        "cuda.txt": [entry for entry in resolved if CUDA.match(entry)],
        "torch-cpu.txt": [cpu_build(entry) for entry in found_torch],
        "audit.txt": entries(resolve("requirements/audit.in")),
    }
    for name, kept in files.items():
        (FOLDER / name).write_text(HEADER + "\n".join(kept) + "\n")
        print(f"requirements/{name}: {len(kept)} packages")


if __name__ == "__main__":
    main()
