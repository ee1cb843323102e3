"""The Helm chart, rendered offline: valid, confined, without keys, and it starts what exists.

Helm and Kubernetes' schemas are asked where their packages are installed, and skipped with a reason where not.
"""

import json
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployed_files import CHART, PROJECT, USER, check_command, modes

FULL: dict[str, Any] = {
    "image": {
        "repository": "registry.example.org/confide-server",
        "digest": "sha256:" + "0" * 64,
        "pullSecrets": ["pull"],
    },
    "coordinator": {
        "folderSecret": "coordinator-folder",
        "environmentSecret": "coordinator-environment",
        "allowFrom": ["192.0.2.0/24"],
        "egress": [{"ports": [{"port": 5432, "protocol": "TCP"}]}],
        "nodeSelector": {"disk": "encrypted"},
        "tolerations": [{"key": "confide", "operator": "Exists"}],
        "service": {"annotations": {"a": "b"}, "loadBalancerSourceRanges": ["192.0.2.0/24"]},
        "storage": {"className": "encrypted"},
    },
    "console": {
        "enabled": True,
        "host": "console.example.org",
        "tlsSecret": "console-tls",
        "folderSecret": "console-f",
        "egress": [{"ports": [{"port": 587, "protocol": "TCP"}]}],
    },
    "serving": {
        "enabled": True,
        "hosts": ["models.example.org", "models"],
        "tlsSecret": "serving-tls",
        "modelsClaim": "models",
        "base": "smollm2",
    },
}
SETUP: dict[str, Any] = {
    "coordinator": {"setup": True},
    "console": {"enabled": True, "setup": True, "host": "console.example.org", "tlsSecret": "console-tls"},
}
CASES = pytest.mark.parametrize("values", [{}, SETUP, FULL], ids=["defaults", "setup", "full"])


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What Helm makes of the chart, offline; notes left out."""
    helm = pytest.importorskip("helm_python", reason="Helm is not installed (package helm-python-sdk)")
    with helm.Chart.load(str(CHART)) as chart:
        made = chart.render(values=values, name="demo")
    texts = [text for name, text in made.items() if name.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents:
        if document["kind"] in ("StatefulSet", "Deployment"):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@CASES
def test_the_chart_is_valid(values: dict[str, Any]) -> None:
    documents = rendered(values)
    validate = pytest.importorskip(
        "kubernetes_validate", reason="package kubernetes-validate is not installed"
    ).validate
    assert len(documents) >= 5
    for document in documents:
        for version in ("1.30", "1.37"):
            validate(document, version, strict=True)


def test_the_chart_is_linted() -> None:
    helm = pytest.importorskip("helm_python.chart", reason="Helm is not installed (package helm-python-sdk)")
    found = helm.lint(str(CHART))
    assert found["errors"] == [] and [each["error"] for each in found["messages"]] == ["icon is recommended"]


@CASES
def test_pods_meet_the_restricted_standard(values: dict[str, Any]) -> None:
    """Pod Security Standards, level restricted; beyond it no token, a read-only root and limits of memory."""
    for name, pod in pods(rendered(values)):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] == USER
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "secret", "persistentVolumeClaim"}, name
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]} and container["resources"]["limits"]["memory"]
            assert not [port for port in container.get("ports", []) if "hostPort" in port]


@CASES
def test_the_chart_starts_what_exists(values: dict[str, Any]) -> None:
    for name, pod in pods(rendered(values)):
        (main,) = pod["containers"]
        if "command" in main:  # it waits for a person
            assert values["coordinator"]["setup"] and main["command"][0] == "python" and "livenessProbe" not in main
            continue
        check_command([str(word) for word in main["args"]])
        mounted = {mount["mountPath"] for mount in main["volumeMounts"]}
        paths = [word.split("=")[-1] for word in map(str, main["args"]) if "/" in word]
        assert all(any(path.startswith(f"{mount}/") for mount in mounted) for path in paths), name
        ports = {port["name"]: port["containerPort"] for port in main["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = main[probe].get("tcpSocket") or main[probe]["httpGet"]
            assert asked["port"] in ports


@CASES
def test_services_and_network_policies_meet_the_pods(values: dict[str, Any]) -> None:
    documents = rendered(values)
    names = {name for name, _ in pods(documents)}
    kinds = ("StatefulSet", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget")
    by_kind = {kind: {d["metadata"]["name"]: d for d in documents if d["kind"] == kind} for kind in kinds}
    assert set(by_kind["Service"]) == names == set(by_kind["NetworkPolicy"])
    assert list(by_kind["PodDisruptionBudget"]) == ["demo-coordinator"]
    for name in names:
        pod = (by_kind["StatefulSet"] | by_kind["Deployment"])[name]["spec"]
        labels = pod["template"]["metadata"]["labels"]
        ports = {p["name"]: p["containerPort"] for p in pod["template"]["spec"]["containers"][0]["ports"]}
        service, policy = by_kind["Service"][name]["spec"], by_kind["NetworkPolicy"][name]["spec"]
        assert pod["replicas"] == 1
        for selector in (service["selector"], policy["podSelector"]["matchLabels"], pod["selector"]["matchLabels"]):
            assert selector.items() <= labels.items()
        # The admission, and a browser's address line, name the port: it is the same inside and outside.
        assert {p["name"]: p["port"] for p in service["ports"]} == ports
        opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        assert opened == set(ports.values()) and set(policy["policyTypes"]) == {"Ingress", "Egress"}
        wanted = values.get(name.removeprefix("demo-"), {}).get("egress", [])
        assert all(rule in policy["egress"] for rule in wanted)
    if "demo-serving" in names:
        assert by_kind["NetworkPolicy"]["demo-serving"]["spec"]["egress"] == []


@CASES
def test_no_key_material_in_the_chart(values: dict[str, Any]) -> None:
    documents = rendered(values)
    assert not [document for document in documents if document["kind"] in ("Secret", "ConfigMap")]
    assert not [document for document in documents if document["kind"].startswith(("Role", "ClusterRole"))]
    text = (CHART / "values.yaml").read_text()
    assert "PRIVATE KEY" not in text
    for line in text.splitlines():
        if re.search(r"(?i)secret|key|password|token", line.partition(":")[0]) and not line.lstrip().startswith("#"):
            assert re.search(r': (""|\[\])$', line), f"a name of a Secret is empty by default: {line}"


def test_the_image_is_what_values_say() -> None:
    (image,) = {each["image"] for _, pod in pods(rendered(FULL)) for each in containers(pod)}
    assert image == f"registry.example.org/confide-server@sha256:{'0' * 64}"
    (image,) = {each["image"] for _, pod in pods(rendered({})) for each in containers(pod)}
    assert image == f"confide-server:{PROJECT['version']}"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"coordinator": {"fleetport": 9442}}, "fleetport"),
        ({"coordinator": {"replicas": 2}}, "replicas"),
        ({"coordinator": {"fleetPort": 443}}, "/coordinator/fleetPort"),
        ({"coordinator": {"allowFrom": ["everyone"]}}, "/coordinator/allowFrom/0"),
        ({"console": {"enabled": True}}, "/console/host"),
        ({"serving": {"enabled": True, "hosts": ["a"], "tlsSecret": "t", "modelsClaim": "m"}}, "/serving/base"),
        ({"serving": {"base": "../secrets"}}, "/serving/base"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    errors = pytest.importorskip("helm_python.errors", reason="Helm is not installed (package helm-python-sdk)")
    with pytest.raises(errors.HelmValuesError, match=re.escape(said)):
        rendered(values)


def test_every_value_is_described_and_used() -> None:
    def leaves(schema: dict[str, Any], top: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        if "$ref" in schema:
            schema = top["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        for name, below in schema.get("properties", {}).items():
            yield from leaves(below, top, (*path, name))
        if "properties" not in schema:
            yield path

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    for path in leaves(schema, schema):
        if path == ("global",):
            continue
        found = values
        for name in path:
            assert name in found, f"{'.'.join(path)} is in the schema and not in values.yaml"
            found = found[name]
        assert f".{path[-1]}" in templates, f"{'.'.join(path)} changes nothing"


def test_a_folder_is_taken_from_a_secret_once(tmp_path: Path) -> None:
    takers = {name: pod.get("initContainers", []) for name, pod in pods(rendered(FULL))}
    (taker,) = takers["demo-coordinator"]
    (script,) = taker["args"]
    state, folder, data = tmp_path / "state", tmp_path / "folder", tmp_path / "folder" / "..data"
    state.mkdir()
    data.mkdir(parents=True)
    for name in ("identity.key", "server.json"):  # as Kubernetes mounts a Secret: links into a hidden folder
        (data / name).write_text(name)
        (data / name).chmod(0o440)
        (folder / name).symlink_to(Path("..data") / name)
    (state / "coordinator.new").mkdir()  # an interrupted copy
    here = script.replace("/state/", f"{state}/").replace("/folder/", f"{folder}/")
    for _ in range(2):
        subprocess.run(["sh", "-ec", here], check=True)
        taken = state / "coordinator"
        assert sorted(path.name for path in taken.iterdir()) == ["identity.key", "server.json"]
        assert modes(taken) == {"0o600"} and stat.S_IMODE(taken.stat().st_mode) == 0o700
        assert not (state / "coordinator.new").exists()
        (data / "identity.key").unlink(missing_ok=True)
