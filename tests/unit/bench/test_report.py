"""What people and programs get to see of the rows."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from bench import registry, report
from bench.rows import Bench, Figure, failed, row

KEYS = {"name", "value", "unit", "peer", "peer_value", "ratio", "bar", "pass", "note"}
SPEED = Figure("speed", "1/s", bar=">= 1.5")


def test_the_file_is_a_list_of_rows_with_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "build" / "bench.json"
    report.write([row(SPEED, 30, peer="other", peer_value=10), failed(SPEED, "why")], file)
    good, bad = json.loads(file.read_text())
    assert set(good) == set(bad) == KEYS
    assert (good["value"], good["peer_value"], good["ratio"], good["pass"]) == (30, 10, 3, True)
    assert (bad["value"], bad["ratio"], bad["pass"], bad["note"]) == (None, None, False, "why")


def test_the_table_names_what_fails_and_why() -> None:
    text = io.StringIO()
    report.show([row(SPEED, 30, peer="other", peer_value=10), failed(SPEED, "no node")], Console(file=text, width=140))
    shown = text.getvalue()
    assert "holds" in shown
    assert "fails" in shown
    assert "not measured" in shown
    assert "no node" in shown


def test_every_bench_of_the_registry_can_be_loaded_and_no_figure_has_two_meanings() -> None:
    benches = {name: registry.bench(name) for name in registry.NAMES}
    assert all(isinstance(one, Bench) and one.figures for one in benches.values())
    names = [figure.name for one in benches.values() for figure in one.figures]
    assert len(names) == len(set(names))
