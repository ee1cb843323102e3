"""`confide bench corpus`: every way trains on the same tokens, and only the file's ways leave a file."""

import json
from pathlib import Path

from confide_client.data.datasets import DataSets
from confide_simulations.benchmarks.training.corpus import WAYS, prepare_and_step

from tests.tiny_models import TEXT, tiny_llama


def test_every_way_counts_the_same_tokens(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base", chat=False)
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": f"{TEXT} {number}"}) + "\n" for number in range(200)))
    DataSets(tmp_path / "node").add("corpus", file, evaluation_fraction=0.0)
    rows = {way: prepare_and_step(tmp_path, way) for way in WAYS}
    assert len({row["tokens"] for row in rows.values()}) == 1 and rows["file"]["tokens"] > 10_000
    assert rows["memory"]["file_mib"] == 0.0 < rows["file"]["file_mib"] == rows["again"]["file_mib"]
