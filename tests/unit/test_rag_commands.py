"""`confide rag` as a person types it."""

import json
import re
from pathlib import Path

import pytest
from confide.errors import ConfideError
from confide_server.rag.commands import app
from typer.testing import CliRunner, Result

from tests.rag_worlds import FEES, WALLS, embedder

RUNNER = CliRunner()


def confide(folder: Path, *arguments: str, model: bool = True) -> Result:
    options = ["--organization", "clinic", "--library", str(folder / "library")]
    chosen = ["--embedder", str(embedder().folder)] if model else []
    return RUNNER.invoke(app, [arguments[0], *map(str, arguments[1:]), *options, *chosen])


def files(folder: Path) -> tuple[Path, Path]:
    for name, text in (("fees.md", FEES), ("walls.txt", WALLS)):
        (folder / name).write_text(text)
    return folder / "fees.md", folder / "walls.txt"


def test_from_adding_to_a_receipt(tmp_path: Path) -> None:
    fees, walls = files(tmp_path)
    (tmp_path / "bad.exe").write_text("x")
    added = confide(tmp_path, "add", "leaflets", str(fees), str(walls), str(tmp_path / "bad.exe"))
    assert added.exit_code == 1, added.output
    assert "2 added with" in added.output and "bad.exe: ends in '.exe'" in added.output
    assert confide(tmp_path, "add", "leaflets", str(fees)).output.startswith("fees.md: is there already")
    listed = confide(tmp_path, "list", "leaflets", model=False).output
    assert "fees.md" in listed and "live" in listed
    assert confide(tmp_path, "list", model=False).output == "clinic/leaflets\n"
    shown = confide(tmp_path, "search", "leaflets", "What does a visit cost?").output
    assert re.search(r"\d\.\d{3} = embedding -?\d\.\d{3}, words \d\.\d{3} \(BM25", shown) and "forty crowns" in shown
    assert confide(tmp_path, "search", "leaflets", "visit", "--since", "2999-01-01").output == ""
    asked = confide(tmp_path, "ask", "leaflets", "What does a visit cost?")
    assert (asked.exit_code, asked.output[:2]) in {(0, '"A'), (3, "I "), (0, '"C'), (0, '"T')}, asked.output
    erased = confide(tmp_path, "erase", "leaflets", "fees.md", model=False)
    assert erased.exit_code == 0, erased.output
    receipt = erased.output.strip().partition("receipt: ")[2]
    checked = RUNNER.invoke(app, ["receipt", receipt, "--library", str(tmp_path / "library")])
    assert checked.exit_code == 0 and '"found_after": 0' in checked.output
    forged = tmp_path / "forged.json"
    forged.write_bytes(Path(receipt).read_bytes().replace(b"clinic", b"clinik"))
    refused = RUNNER.invoke(app, ["receipt", str(forged), "--library", str(tmp_path / "library")])
    assert isinstance(refused.exception, ConfideError) and "signed by" not in refused.output
    elsewhere = RUNNER.invoke(app, ["receipt", receipt, "--library", str(tmp_path / "elsewhere")])
    assert "has no key" in str(elsewhere.exception) and not (tmp_path / "elsewhere").exists()
    assert "erased" in confide(tmp_path, "list", "leaflets", model=False).output
    assert "crowns" not in confide(tmp_path, "search", "leaflets", "visit cost crowns").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "../up", "visit"], "is no name"),
        (["search", "absent", "visit"], "or it is not there"),
        (["search", "leaflets", "visit", "--since", "soon"], "write a day as"),
        (["ask", "leaflets"], "and then the question"),
        (["erase", "leaflets", "no.md"], "holds no document"),
        (["add", "leaflets", "x.md", "--personal-data", "sell"], "use one of mask, refuse, keep"),
        (["add", "other", "x.md", "--store", "chroma"], "is not known"),
        (["add", "other", "x.md", "--region", "de"], "country 'de' is not known"),
        (["add", "other", "x.md", "--region", "UK"], "country 'UK' is not known"),
        (["add", "leaflets", "x.md", "--personal-data", "refuse"], "was made with personal data mask"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], said: str, tmp_path: Path) -> None:
    fees, _ = files(tmp_path)
    confide(tmp_path, "add", "leaflets", str(fees))
    result = confide(tmp_path, *arguments, model=arguments[0] not in {"erase"})
    assert isinstance(result.exception, ConfideError) and said in str(result.exception), result.output


def test_calibrate_and_evaluate_write_what_they_found(tmp_path: Path) -> None:
    lines = [
        {"id": str(n), "text": f"The {word} costs {n + 10} crowns at the {word} desk."} for n, word in enumerate(WORDS)
    ]
    (tmp_path / "faq.jsonl").write_text("\n".join(map(json.dumps, lines)))
    questions = [
        {"question": f"What does the {word} cost?", "gold": [{"source": "faq.jsonl", "record": str(n)}]}
        for n, word in enumerate(WORDS)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    assert confide(tmp_path, "add", "faq", str(tmp_path / "faq.jsonl")).exit_code == 0
    calibrated = confide(tmp_path, "calibrate", "faq", str(tmp_path / "questions.jsonl"))
    assert calibrated.exit_code == 0 and "AUROC" in calibrated.output, calibrated.output
    out, plot = tmp_path / "figures.json", tmp_path / "recall.png"
    arguments = ["evaluate", "faq", str(tmp_path / "questions.jsonl"), "--json", str(out), "--plot", str(plot)]
    evaluated = confide(tmp_path, *arguments)
    assert evaluated.exit_code == 0, evaluated.output
    figures = json.loads(out.read_text())
    assert figures["answers"]["citation_precision"] in {1.0, None} and plot.stat().st_size > 3000
    assert set(figures["retrieval"]) == {"bm25", "dense", "hybrid"}


WORDS = [
    "anchor",
    "barrel",
    "candle",
    "drawer",
    "engine",
    "feather",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "magnet",
    "needle",
    "orchard",
    "pencil",
    "quarry",
    "ribbon",
    "saddle",
    "tunnel",
    "umbrella",
    "violin",
    "window",
    "yard",
    "zipper",
]
