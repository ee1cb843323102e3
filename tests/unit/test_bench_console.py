"""`confide bench console` over a short history: every page is answered, and its figures are written."""

import json

from confide_simulations.benchmarks.console import command as bench
from confide_simulations.benchmarks.console.command import PAGES, console


def test_every_page_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "IDLE_S", 0.2)
    monkeypatch.setattr(bench, "ROUNDS_SHOWN", 1)
    console(nodes=20, runs=10, events=1000, receipts=200, audit=20, repeats=3, watchers=2,
            json_path=tmp_path / "figures.json")  # fmt: skip
    found = json.loads((tmp_path / "figures.json").read_text())
    assert set(found["results"]) == set(PAGES) and found["config"]["events"] == 1000
    for page in found["results"].values():
        assert 0 < page["cold_cpu_p50_ms"] <= page["cold_cpu_p95_ms"] and page["kib"] > 0
    watched = found["watchers"]
    assert watched["watchers"] == 2 and watched["idle_core_percent"] >= 0
    assert len(watched["all_ms"]) == 1 and 0 < watched["half_ms"][0] <= watched["all_ms"][0]
