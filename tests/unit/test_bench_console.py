"""`confide bench console` over a short history: every page is answered, and its figures are written."""

import json

from confide_simulations.benchmarks.console import PAGES, console


def test_every_page_is_measured(tmp_path):
    console(nodes=20, runs=10, events=1000, receipts=200, audit=20, repeats=3, json_path=tmp_path / "figures.json")
    found = json.loads((tmp_path / "figures.json").read_text())
    assert set(found["results"]) == set(PAGES) and found["config"]["events"] == 1000
    for page in found["results"].values():
        assert 0 < page["cold_cpu_p50_ms"] <= page["cold_cpu_p95_ms"] and page["kib"] > 0
