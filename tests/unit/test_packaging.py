"""The wheel: everything is in it, and installed away from the source every command of it works; pins and extras."""

import ast
import email
import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from confide.errors import StateError
from confide_simulations import assets
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ["common/confide", "client/confide_client", "server/confide_server", "simulations/confide_simulations"]
PYTHONS = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that holds the wheel, and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    made = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(made), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    # Folders named so are not searched for .pth files: this checkout, installed there for editing, stays out of sight.
    (site / "dependencies.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n"
    )
    return made


HELP_OF_ALL = """
import click, confide
from confide.cli import app
from typer.main import get_command
top = get_command(app)
for name in top.list_commands(click.Context(top)):
    top.main([name, "--help"], standalone_mode=False)
    # The benchmarks load torch to say what they do: their list is enough.
    group = top.load(name) if name != "bench" else None
    for inner in group.list_commands(click.Context(group)) if isinstance(group, click.Group) else []:
        top.main([name, inner, "--help"], standalone_mode=False)
    print("helped", name)
print(confide.__file__)
"""


def run(python: Path, folder: Path, *command: str) -> str:
    done = subprocess.run([python, *command], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    expected = {
        str(path.relative_to((ROOT / package).parent))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"confide/privacy/templates/report.html", "confide_server/state/migrations/script.py.mako"} <= held


def test_every_command_helps_from_the_wheel(python: Path, tmp_path: Path) -> None:
    said = run(python, tmp_path, "-c", HELP_OF_ALL)
    helped = re.findall(r"^helped ([\w-]+)$", said, re.MULTILINE)
    assert sorted(helped) == sorted(PROJECT["entry-points"]["confide.commands"])
    assert Path(said.splitlines()[-1]).is_relative_to(python.parents[1]), "the wheel's own code"
    # The script that pip made of the entry point.
    done = subprocess.run([python.parent / "confide", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"confide {PROJECT['version']}\n"


def test_what_is_packaged_is_found_from_the_wheel(python: Path, tmp_path: Path) -> None:
    assert "answers.toml" in run(python, tmp_path, "-m", "confide", "recipe", "show", "support-chatbot")
    assert "diloco: " in run(python, tmp_path, "-m", "confide", "reproduce")
    code = (
        "import sys; from confide_server.state.database import Database\n"
        "Database(sys.argv[1]).close(); import confide_server; print(confide_server.__file__)"
    )
    said = run(python, tmp_path, "-c", code, f"sqlite:///{tmp_path}/made.db")
    assert Path(said.strip()).is_relative_to(python.parents[1]) and (tmp_path / "made.db").stat().st_size > 0


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extras", ["", f"[{','.join(sorted(set(PROJECT['optional-dependencies']) - {'dev'}))}]"])
def test_pip_makes_a_bare_environment_work(wheel: Path, tmp_path: Path, extras: str) -> None:
    """Every dependency comes from the registry: nothing of this environment is in sight."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}{extras}"]
    subprocess.run(install, check=True, cwd=tmp_path)
    subprocess.run([python, "-m", "pip", "check"], check=True, cwd=tmp_path)
    said = run(python, tmp_path, "-c", HELP_OF_ALL)
    assert sorted(re.findall(r"^helped ([\w-]+)$", said, re.MULTILINE)) == sorted(
        PROJECT["entry-points"]["confide.commands"]
    )
    assert Path(said.splitlines()[-1]).is_relative_to(tmp_path)


def test_extras_and_pythons_are_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        held = email.message_from_bytes(archive.read(name))
    assert set(held.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    classifiers = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if " :: Python :: 3." in line}
    assert classifiers == set(PYTHONS)


def test_the_source_is_written_for_the_oldest_python() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            ast.parse(path.read_text(), filename=str(path), feature_version=(3, 11))


def test_without_the_extra_the_packaged_model_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StateError, match=r"confide\[models\]"):
        assets._convert_gguf(tmp_path / "model.gguf", tmp_path)


# --- the pins


def pinned(name: str) -> dict[str, tuple[Requirement, set[str]]]:
    """Of a requirements file: each package's requirement and the SHA-256 of its files."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line.split(" --hash")[0])
            found[canonicalize_name(requirement.name)] = requirement, set(re.findall(r"sha256:([0-9a-f]{64})", line))
    return found


@pytest.mark.parametrize("name", ["build.txt", "lock.txt", "cuda.txt"])
def test_every_pin_is_exact_and_hashed(name: str) -> None:
    entries = pinned(name)
    assert entries
    for requirement, hashes in entries.values():
        assert [part.operator for part in requirement.specifier] == ["=="], requirement
        assert hashes, requirement


def test_the_lock_holds_what_the_project_asks_for_and_what_the_constraints_say() -> None:
    lock = pinned("lock.txt")
    asked = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, asked):
        held = lock.get(canonicalize_name(requirement.name))
        assert held is not None, f"{requirement} is not in requirements/lock.txt; run `make lock`"
        version = next(iter(held[0].specifier)).version
        assert requirement.specifier.contains(version), f"{requirement}: {version} is locked; run `make lock`"
    for line in (ROOT / "constraints.txt").read_text().split():
        constraint = Requirement(line)
        held = lock.get(canonicalize_name(constraint.name))
        if held is not None:
            assert held[0].specifier == constraint.specifier, f"{line} is not what is locked; run `make lock`"


@pytest.mark.parametrize("python_version", PYTHONS)
def test_no_pin_is_missing_on_a_python(python_version: str) -> None:
    environment = {"python_version": python_version, "python_full_version": f"{python_version}.0"}
    environment |= {"sys_platform": "linux", "platform_machine": "x86_64"}
    missing = [
        name
        for name, (requirement, _) in pinned("lock.txt").items()
        if requirement.marker is not None and not requirement.marker.evaluate(environment)
    ]
    # Needed in a browser, on Windows, and before Python 3.12 only.
    assert set(missing) <= {"httpx2-jsfetch", "tzdata", "overrides"}


def test_torch_may_come_from_the_registry_and_as_a_cpu_build() -> None:
    requirement, hashes = pinned("lock.txt")["torch"]
    lines = [line.split() for line in (ROOT / "requirements" / "torch-cpu.sha256").read_text().splitlines()]
    version = next(iter(requirement.specifier)).version
    assert {digest for digest, _ in lines} < hashes
    for python_version in PYTHONS:
        tag = "cp" + python_version.replace(".", "")
        assert any(name.startswith(f"torch-{version}+cpu-{tag}-") and "x86_64" in name for _, name in lines), tag


# --- the audit


@pytest.mark.parametrize(
    ("pip_audit", "status"),
    [
        ("echo 'No known vulnerabilities found'", 0),
        ("echo 'Name  Version ID          Fix Versions'; echo 'idna  3.20    PYSEC-1  3.21'; exit 1", 1),
        ("echo 'ERROR: idna: Dependency not found on PyPI and could not be audited' >&2; exit 1", 2),
    ],
)
def test_an_audit_that_was_not_made_is_no_clean_one(tmp_path: Path, pip_audit: str, status: int) -> None:
    stand_in = tmp_path / "pip-audit"
    stand_in.write_text(f"#!/bin/sh\n{pip_audit}\n")
    stand_in.chmod(0o755)
    done = subprocess.run(["sh", "tools/audit.sh", stand_in], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert ("NOT audited" in done.stderr) == (status == 2)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("case $2 in *ensurepip*) exit 1;; *) echo 3.10.4;; esac", "is 3.10.4"),
        ("case $2 in *ensurepip*) exit 1;; *) echo 3.12.3;; esac", "venv module is missing"),
        ("exit 127", "does not run"),
    ],
)
def test_a_python_that_does_not_serve_is_named_with_what_to_install(tmp_path: Path, program: str, said: str) -> None:
    stand_in = tmp_path / "python3.12"
    stand_in.write_text(f"#!/bin/sh\n{program}\n")
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["sh", "tools/find_python.sh", stand_in], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    assert said in done.stderr and "apt install python3.12 python3.12-venv" in done.stderr


def test_this_python_serves() -> None:
    command = ["sh", "tools/find_python.sh", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable)


@pytest.mark.full
def test_the_bill_of_materials_names_what_users_install_and_no_more() -> None:
    subprocess.run(["make", "sbom", f"VENV={Path(sys.prefix).relative_to(ROOT)}"], cwd=ROOT, check=True)
    document = json.loads((ROOT / "dist" / "confide.cdx.json").read_text())
    names = {component["name"] for component in document["components"]}
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["simulation"]]
    assert {canonicalize_name(Requirement(line).name) for line in asked} <= names
    assert not names & {"pytest", "ruff", "mypy"}
    assert "confide.cdx.json" in (ROOT / "dist" / "SHA256SUMS").read_text()
