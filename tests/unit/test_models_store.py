"""Base models are pinned by a hash over what matters, and nothing that can carry code comes in."""

import json
from pathlib import Path

import pytest
import torch
from confide.errors import ModelError
from confide.models.store import ModelStore, folder_digest
from safetensors.torch import save
from typer.testing import CliRunner


def _weights(**values: float) -> bytes:
    return save({name: torch.tensor([value]) for name, value in values.items()})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(_weights(a=1.0))
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
    (store.path(digest) / "model.safetensors").write_bytes(_weights(a=2.0))
    store.path(digest)
    with pytest.raises(ModelError, match="were altered"):
        store.path(digest, verify=True)


def test_pickled_weights_are_refused_with_the_remedy(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*safe_serialization=True"):
        ModelStore(tmp_path / "models").add(str(source), "tiny")


@pytest.mark.parametrize("name", ["model.safetensors", "tiny", "organization/model"])
def test_a_file_is_refused_and_no_hub_is_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from confide_client.commands.model import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("confide.models.store._download", lambda source: pytest.fail(f"a hub was asked for {source}"))
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(_weights(a=1.0))
    for source in (name, str(tmp_path / name)):
        shown = CliRunner().invoke(app, ["add", source, "--models", str(tmp_path / "models")])
        assert isinstance(shown.exception, ModelError)
        assert f"{source} is a file; give the folder" in str(shown.exception)


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

    digest = run("add", str(source), "--name", "tiny", "--no-trial").split()[-1]
    assert digest == folder_digest(source)
    assert digest in run("list")
    assert "unaltered" in run("verify", digest[:8])
    assert digest in run("remove", "tiny")
    assert digest not in run("list")


def test_a_model_that_is_added_is_tried_and_one_that_nothing_trains_is_not_kept(source: Path, tmp_path: Path) -> None:
    from confide_client.commands.model import app

    from tests.tiny_models import tiny_llama

    (tmp_path / "llama").mkdir()
    models = ["--models", str(tmp_path / "m")]
    added = CliRunner().invoke(app, ["add", str(tiny_llama(tmp_path / "llama")), *models])
    assert added.exit_code == 0, added.output
    assert "trains by sft, causal_lm, classification, contrastive" in added.output
    assert "not by masked_lm: a llama model" in added.output
    refused = CliRunner().invoke(app, ["add", str(source), *models])
    assert isinstance(refused.exception, ModelError)
    assert len(ModelStore(tmp_path / "m").list()) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_pointer_of_git_lfs_is_named(source: Path, tmp_path: Path, name: str) -> None:
    (source / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    with pytest.raises(ModelError, match=rf"{name} is a Git LFS pointer, .*git lfs pull"):
        ModelStore(tmp_path / "models").add(str(source), "tiny")


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_torn_weights_are_named(source: Path, tmp_path: Path, keep: int) -> None:
    whole = (source / "model.safetensors").read_bytes()
    for torn in (whole[:keep], whole + b"x", b"\xff" * 8 + whole[8:], whole[:8] + b"[" + whole[9:]):
        (source / "model.safetensors").write_bytes(torn)
        with pytest.raises(ModelError, match=r"model\.safetensors is no whole safetensors file"):
            ModelStore(tmp_path / "models").add(str(source), "tiny")
    assert not list((tmp_path / "models").glob("*"))


@pytest.mark.parametrize(
    ("mapped", "said"),
    [
        ({"a": "one.safetensors", "b": "two.safetensors"}, None),
        ({"a": "one.safetensors", "c": "three.safetensors"}, "'three.safetensors', which is not in the folder"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "'b' into 'one.safetensors', which has no such tensor"),
        ({"a": "../source/one.safetensors"}, "which is not in the folder"),
        ({}, "maps no tensors"),
    ],
)
def test_an_index_names_what_is_there(source: Path, tmp_path: Path, mapped: dict[str, str], said: str | None) -> None:
    (source / "model.safetensors").unlink()
    (source / "one.safetensors").write_bytes(_weights(a=1.0))
    (source / "two.safetensors").write_bytes(_weights(b=1.0))
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))
    store = ModelStore(tmp_path / "models")
    if said is None:
        assert store.add(str(source), "tiny") == folder_digest(source)
        return
    with pytest.raises(ModelError, match=said):
        store.add(str(source), "tiny")


def test_an_adapter_beside_the_model_is_refused(source: Path, tmp_path: Path) -> None:
    """transformers would load it on top; the hash does not name it."""
    (source / "adapter_config.json").write_text("{}")
    for look in (folder_digest, lambda folder: ModelStore(tmp_path / "models").add(str(folder), "tiny")):
        with pytest.raises(ModelError, match="PEFT adapter"):
            look(source)


def test_links_stay_in_their_folder_or_in_a_hubs_cache(source: Path, tmp_path: Path) -> None:
    whole = folder_digest(source)
    weights = source / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"link out of its folder, to .*elsewhere; copy the file itself"):
        folder_digest(source)
    weights.unlink()
    (tmp_path / "elsewhere").rename(source / "kept.bin")
    weights.symlink_to("kept.bin")
    assert folder_digest(source) == whole
    (source / "kept.bin").unlink()
    with pytest.raises(ModelError, match="link to nothing"):
        folder_digest(source)


def test_a_hubs_cache_is_read_through_its_links(source: Path, tmp_path: Path) -> None:
    whole = folder_digest(source)
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert folder_digest(snapshot) == whole


def test_equal_hashes_load_equal_models(tmp_path: Path) -> None:
    """Whatever else lies beside the hashed files is not read: code, other templates, vocabularies by other names."""
    from confide.models.architecture import load_config, load_tokenizer

    from tests.tiny_models import tiny_llama

    plain = tiny_llama(tmp_path / "plain")
    full = tiny_llama(tmp_path / "full")
    (full / "additional_chat_templates").mkdir()
    (full / "additional_chat_templates" / "rag.jinja").write_text("other")
    (full / "tokenizer.5.0.json").write_text("{}")
    (full / "configuration_llama.py").write_text("raise SystemExit")
    (full / "pytorch_model.bin").write_bytes(b"pickle")
    assert folder_digest(plain) == folder_digest(full)
    one, other = load_tokenizer(plain), load_tokenizer(full)
    assert one.chat_template == other.chat_template
    assert one("The wall")["input_ids"] == other("The wall")["input_ids"]
    configurations = [load_config(folder).to_dict() for folder in (plain, full)]
    assert [one.pop("_name_or_path") for one in configurations] == [str(plain), str(full)]
    assert configurations[0] == configurations[1]


def test_no_loader_trusts_the_code_of_a_folder() -> None:
    """Not given, transformers asks whoever sits at the terminal, and runs the folder's code on "y"."""
    import ast

    root = Path(__file__).resolve().parent.parent.parent
    said, silent = 0, []
    for package in ("common", "client", "server", "simulations"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                adapter = any(name in ast.unparse(node.func) for name in ("PeftModel", "LoraConfig"))
                if node.func.attr != "from_pretrained" or adapter:
                    continue  # an adapter has no code: PEFT reads its configuration and tensors only
                trusted = [one.value for one in node.keywords if one.arg == "trust_remote_code"]
                if len(trusted) == 1 and isinstance(trusted[0], ast.Constant) and trusted[0].value is False:
                    said += 1
                else:
                    silent.append(f"{path.name}:{node.lineno}")
    assert silent == [] and said >= 4
