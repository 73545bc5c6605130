r"""What the command prints: JSON for programs, tables for people, and never a control character that came from elsewhere.

Names, log lines and reasons come from workflows, virtual machines and the network.  Whoever can choose one could move
the cursor, recolour a verdict or hide a line: so control and direction characters are shown as ``\x1b``, ``\u202e``.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNSAFE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})

STYLES: Mapping[str, str] = {
    "allowed": "green",
    "blocked": "red",
    "warn": "yellow",
    "ok": "green",
    "fail": "red",
    "FAIL": "red",
    "success": "green",
    "failure": "red",
}
"""Words that are shown in a colour, where the terminal has any."""


def clean(text: object) -> str:
    """``text`` with everything that could act on a terminal written out; a newline too."""
    return "".join(_shown(char) if unicodedata.category(char) in _UNSAFE else char for char in str(text))


def _shown(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def print_json(value: Any) -> None:
    """One JSON document; non-ASCII and control characters are escaped by the encoder."""
    encoded = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(ascii_json(encoded.decode()) + "\n")


def print_json_line(value: Any) -> None:
    sys.stdout.write(ascii_json(msgspec.json.encode(value).decode()) + "\n")
    sys.stdout.flush()


def ascii_json(text: str) -> str:
    """Escape what isn't ASCII in JSON ``text``: direction marks and C1 controls are legal in it as they are."""
    return "".join(char if ord(char) < 0x7F else _json_escape(char) for char in text)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def styled(value: object) -> Text:
    text = clean(value)
    return Text(text, style=STYLES.get(text, ""))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """A table of remote data, made safe.  Columns whose name starts with ``#`` hold numbers, set to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column.startswith("#")
        made.add_column(column.lstrip("#"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(styled(cell) for cell in row))
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    made = table(columns, rows, title=title)
    out = console()
    if not out.is_terminal:
        out.width = 240
    out.print(made)


def seconds(value: float) -> str:
    """A duration for people: ``0.3 s``, ``42.1 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def size(value: int) -> str:
    """Bytes for people, in powers of 1024."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError
