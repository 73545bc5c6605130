"""The table for people and ``build/bench.json`` for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench.rows import Row
from orchestrator.system.files import write_atomic

FILE = Path(__file__).resolve().parent.parent / "build" / "bench.json"


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title="make bench")
    shown.add_column("figure", no_wrap=True)
    for heading in ("value", "peer or limit", "its value", "ratio", "bar", ""):
        shown.add_column(heading)
    for one in rows:
        shown.add_row(
            one.name,
            f"{_number(one.value)} {one.unit}" if one.value is not None else "not measured",
            one.peer or "-",
            _number(one.peer_value),
            _number(one.ratio),
            one.bar or "-",
            _judgement(one),
        )
    return shown


def show(rows: Sequence[Row], console: Console) -> None:
    console.print(table(rows))
    for one in rows:
        if one.note:
            console.print(f"[bold]{one.name}[/]: {one.note}", highlight=False, soft_wrap=True)


def write(rows: Sequence[Row], path: Path = FILE) -> None:
    """Write ``rows``, all of one run, in place of an earlier run's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n", mode=0o644)


def _judgement(one: Row) -> str:
    if not one.passed:
        return "[red]fails[/]"
    return "[green]holds[/]" if one.bar else ""


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
