"""An exported adapter is the model that was signed, or is refused; its list of file hashes proves nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from confide.errors import ConfideError, ModelError
from confide.files import sha256_file
from confide.models.bound import check_bound
from confide.models.export import TRAINED
from confide.sealing.manifest import verify_manifest
from confide_client.commands import audit
from confide_server.serving.adapters import AdapterStore
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.coordinator_world import World
from tests.served_models import signed_adapter, strong_adapter, strong_llama
from tests.tiny_models import tiny_llama

SCHEMES = ("average", "ffa", "rolora", "fedsvd", "fedsb")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("world"), nodes=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strong_llama(tmp_path_factory.mktemp("base"))


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return found


def listed_again(folder: Path) -> None:
    """What whoever alters files does too: the list of their hashes is no secret, and not signed."""
    manifest = manifest_of(folder)
    files = {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_adapter_of_any_scheme_is_bound_to_its_signature(
    world: World, base: Path, tmp_path: Path, scheme: str
) -> None:
    folder = signed_adapter(world, base, tmp_path / "adapter", 1, aggregation=scheme)
    root = world.consortium.root.public
    verify_manifest(manifest_of(folder), root, folder)
    check_bound(folder, manifest_of(folder), base)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in (next(n for n in tensors if "lora_A" in n), next(n for n in tensors if "lora_B" in n)):
        altered = {**tensors, name: tensors[name] + 1e-3}
        save_file(altered, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        listed_again(folder)
        verify_manifest(manifest_of(folder), root, folder)
        with pytest.raises(ModelError, match=r"not the model|does not follow from the signed run"):
            check_bound(folder, manifest_of(folder), base)


def test_what_else_could_be_altered_is_named(world: World, base: Path, tmp_path: Path) -> None:
    export = signed_adapter(world, base, tmp_path / "export", 1, aggregation="fedsb")
    root = world.consortium.root.public
    store = AdapterStore(tmp_path / "store", base)

    def altered(name: str, data: bytes | None) -> str:
        folder = tmp_path / "altered"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(export, folder)
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
        if name != "manifest.json":
            listed_again(folder)
        with pytest.raises(ConfideError) as refused:
            store.keep(folder, root)
        return str(refused.value)

    config = json.loads((export / "adapter_config.json").read_bytes())
    assert "lora_alpha is 64" in altered("adapter_config.json", json.dumps({**config, "lora_alpha": 64}).encode())
    assert "target_modules is" in altered("adapter_config.json", json.dumps({**config, "target_modules": []}).encode())
    assert "holds no trained.safetensors" in altered(TRAINED, None)
    cores = load_file(export / TRAINED)
    save_file({name: core * 2 for name, core in cores.items()}, tmp_path / "twice")
    assert "are not the model" in altered(TRAINED, (tmp_path / "twice").read_bytes())
    assert "cannot be read" in altered("adapter_model.safetensors", b"\x08")
    assert "no manifest.json" in altered("manifest.json", None)
    assert "cannot be read" in altered("manifest.json", b"{")
    manifest = manifest_of(export)
    other = {**manifest, "model_sha256": "0" * 64, "chain": ["0" * 64]}
    assert altered("manifest.json", json.dumps(other).encode())
    with pytest.raises(ConfideError):
        store.keep(export, b"\1" * 32)
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").iterdir())


def test_the_store_keeps_what_it_verified(world: World, base: Path, tmp_path: Path) -> None:
    export = signed_adapter(world, base, tmp_path / "export", 1)
    root, store = world.consortium.root.public, AdapterStore(tmp_path / "store", base)
    kept = store.keep(export, root)
    assert store.keep(export, root) == kept and kept.run_id == manifest_of(export)["run_id"]
    shutil.rmtree(export)
    folder = store.verify(kept.sha256, root)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ConfideError):
        store.verify(kept.sha256, root)
    with pytest.raises(ModelError, match="were altered"):
        store.verify(kept.sha256, None)
    with pytest.raises(ModelError, match="is not kept here"):
        store.path("../" + "a" * 61)


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", seed=7)
    folder = strong_adapter(other, tmp_path / "adapter", 1)
    with pytest.raises(ModelError, match="was trained on the model"):
        AdapterStore(tmp_path / "store", base).keep(folder, None)


def test_the_auditor_s_command_checks_the_adapter_itself(world: World, base: Path, tmp_path: Path) -> None:
    folder = signed_adapter(world, base, tmp_path / "adapter", 1)
    root = ["--root", world.consortium.root.public.hex()]

    def verify(*arguments: str) -> Any:
        return CliRunner().invoke(audit.app, ["verify-manifest", str(folder), *root, *arguments])

    assert "is the model that was signed" in verify("--model-folder", str(base)).output
    assert "is not signed: give --model-folder" in verify().output
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    listed_again(folder)
    assert verify().exit_code == 0
    assert isinstance(verify("--model-folder", str(base)).exception, ModelError)
