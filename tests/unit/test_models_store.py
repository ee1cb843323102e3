"""Base models are pinned by a hash over what matters, and nothing that can carry code comes in."""

from pathlib import Path

import pytest
from confide.errors import ModelError
from confide.models.store import ModelStore, folder_digest
from typer.testing import CliRunner


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_digest_covers_contents_and_names_of_model_files_only(source: Path) -> None:
    before = folder_digest(source)
    (source / "README.md").write_text("hello")
    assert folder_digest(source) == before
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        old = (source / name).read_bytes()
        (source / name).write_bytes(old + b" ")
        assert folder_digest(source) != before, name
        (source / name).write_bytes(old)
    (source / "model.safetensors").rename(source / "other.safetensors")
    assert folder_digest(source) != before


def test_add_copies_only_what_counts_and_is_idempotent(source: Path, tmp_path: Path) -> None:
    (source / "modeling_evil.py").write_text("raise SystemExit")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    store = ModelStore(tmp_path / "models")
    digest = store.add(str(source), "tiny")
    assert store.add(str(source), "tiny") == digest == folder_digest(source)
    assert {path.name for path in store.path(digest, verify=True).iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert [(model.name, model.sha256) for model in store.list()] == [("tiny", digest)]
    assert not list((tmp_path / "models").glob(".adding-*"))


def test_altered_files_are_found(source: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    digest = store.add(str(source), "tiny")
    (store.path(digest) / "model.safetensors").write_bytes(b"Weights")
    store.path(digest)
    with pytest.raises(ModelError, match="were altered"):
        store.path(digest, verify=True)


def test_pickled_weights_are_refused_with_the_remedy(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*safe_serialization=True"):
        ModelStore(tmp_path / "models").add(str(source), "tiny")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_folders_are_refused(source: Path, tmp_path: Path, missing: str) -> None:
    (source / missing).unlink()
    with pytest.raises(ModelError, match=r"config\.json|\.safetensors"):
        ModelStore(tmp_path / "models").add(str(source), "tiny")


@pytest.mark.parametrize("sha256", ["ab" * 32, "../../etc", "AB" * 32, ""])
def test_unknown_models_name_the_remedy_and_nothing_that_is_here(source: Path, tmp_path: Path, sha256: str) -> None:
    store = ModelStore(tmp_path / "models")
    store.add(str(source), "tiny")
    with pytest.raises(ModelError, match=r"confide model add.*confide model list") as told:
        store.path(sha256)
    assert "tiny" not in str(told.value)


def test_command_adds_lists_verifies_and_removes(source: Path, tmp_path: Path) -> None:
    from confide_client.commands.model import app

    runner = CliRunner()

    def run(*arguments: str) -> str:
        result = runner.invoke(app, [*arguments, "--models", str(tmp_path / "m")], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    digest = run("add", str(source), "--name", "tiny").split()[-1]
    assert digest == folder_digest(source)
    assert digest in run("list")
    assert "unaltered" in run("verify", digest[:8])
    assert digest in run("remove", "tiny")
    assert digest not in run("list")
