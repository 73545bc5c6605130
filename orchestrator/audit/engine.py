"""The search engine: DuckDB over one Parquet file a sealed day.  See `docs/adr/0009`.

A Parquet file is made out of a day's lines and holds the same events, a column a field; it proves nothing, may be deleted,
and is made again.  DuckDB is loaded by the first question that needs it, reads below the record's folder only, and
installs nothing.
"""

from __future__ import annotations

import os
import threading
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_origin

import msgspec

from orchestrator.core.flow import Event, Identity
from orchestrator.system.files import sync_folder

if TYPE_CHECKING:
    import duckdb

MEMORY = "1GB"
_ROWS = 122_880
"""In a row group: DuckDB's own size, which it reads in parallel and skips by a column's least, greatest and Bloom filter."""
_TYPES = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN"}


def _type_of(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return "VARCHAR"
    if origin is tuple:
        return "VARCHAR[]"
    if origin is dict:
        return "JSON"
    return _TYPES[annotation]


def _columns(struct: type[msgspec.Struct]) -> dict[str, str]:
    hints = typing.get_type_hints(struct)
    return {
        field.encode_name: _type_of(hints[field.name])
        for field in msgspec.structs.fields(struct)
        if hints[field.name] is not Identity
    }


EVENT_COLUMNS = _columns(Event)
WHO_COLUMNS = _columns(Identity)
COLUMNS = (*EVENT_COLUMNS, *(f"who_{name}" for name in WHO_COLUMNS))
_WHO = "STRUCT(" + ", ".join(f'"{name}" {kind}' for name, kind in WHO_COLUMNS.items()) + ")"
_JSON = "{" + ", ".join(f"'{name}': '{kind}'" for name, kind in {**EVENT_COLUMNS, "who": _WHO}.items()) + "}"
_PROJECTION = ", ".join(
    [*(f'"{name}"' for name in EVENT_COLUMNS), *(f'who."{name}" AS "who_{name}"' for name in WHO_COLUMNS)]
)
_SELECTED = ", ".join(f'"{name}"' for name in COLUMNS)
_FROM_JSON = (
    f"SELECT {_PROJECTION} FROM read_json(?, format='newline_delimited', columns={_JSON}, ignore_errors=true, "  # noqa: S608 - names of ours
    "maximum_object_size=2097152) WHERE event IS NOT NULL AND seq IS NOT NULL AND ts IS NOT NULL"
)
_FROM_PARQUET = f"SELECT {_SELECTED} FROM read_parquet(?)"  # noqa: S608 - names of ours


class Engine:
    """For the record in ``folder``.  Threads may share one."""

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        self._folder = folder.resolve()
        self._threads = threads or min(4, os.cpu_count() or 1)
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._lock = threading.Lock()

    def select(
        self, parquet: Sequence[Path], lines: Sequence[Path], where: Sequence[str], values: Sequence[Any], limit: int
    ) -> list[Event]:
        """The newest ``limit`` events of these files for which every one of ``where`` holds, newest first."""
        sources, files = _sources(parquet, lines)
        condition = f" WHERE {' AND '.join(where)}" if where else ""
        rows = self._cursor().execute(
            f"SELECT {_SELECTED} FROM ({sources}){condition} ORDER BY ts DESC, gateway DESC, seq DESC LIMIT {int(limit)}",  # noqa: S608 - conditions of ours, values apart
            [*files, *values],
        )
        return [event for row in rows.fetchall() if (event := _event(row)) is not None]

    def places(
        self, parquet: Sequence[Path], where: Sequence[str], values: Sequence[Any], limit: int
    ) -> list[tuple[str, int]]:
        """File and number of the newest ``limit`` events of these files for which every one of ``where`` holds."""
        condition = f" WHERE {' AND '.join(where)}" if where else ""
        rows = self._cursor().execute(
            f"SELECT filename, seq FROM read_parquet(?, filename=true){condition} "  # noqa: S608 - conditions of ours, values apart
            f"ORDER BY ts DESC, gateway DESC, seq DESC LIMIT {int(limit)}",
            [_real(parquet), *values],
        )
        return [(str(file), int(seq)) for file, seq in rows.fetchall()]

    def make(self, lines: Path, parquet: Path) -> int:
        """Write ``parquet`` out of the events in ``lines`` (compressed or not), whole or not at all; how many there are."""
        part = parquet.with_name(f".{parquet.name}.part")
        self._cursor().execute(
            f"COPY ({_FROM_JSON}) TO {_quoted(part)} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROWS})",
            [[str(lines.resolve())]],
        )
        descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o600)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, parquet)
        sync_folder(parquet.parent)
        return self._sum(_FROM_PARQUET, parquet)[0]

    def agrees(self, lines: Path, parquet: Path) -> bool:
        """Whether ``parquet`` holds the events of ``lines``, each and no other."""
        return self._sum(_FROM_PARQUET, parquet) == self._sum(_FROM_JSON, lines)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _sum(self, source: str, path: Path) -> tuple[int, int]:
        row = self._cursor().execute(
            f"SELECT count(*), coalesce(sum(hash({_SELECTED})), 0) FROM ({source})",  # noqa: S608 - names of ours
            [[str(path.resolve())]],
        )
        count, total = row.fetchone() or (0, 0)
        return int(count), int(total)

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        with self._lock:
            if self._connection is None:
                config: dict[str, Any] = {
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                    "memory_limit": MEMORY,
                    "threads": self._threads,
                    "temp_directory": str(self._folder / ".spill"),
                }
                self._connection = duckdb.connect(":memory:", config=config)
                self._connection.execute("SET allowed_directories = ?", [[f"{self._folder}/"]])
                self._connection.execute("SET enable_external_access = false")
                self._connection.execute("SET lock_configuration = true")
            return self._connection.cursor()


def _real(paths: Sequence[Path]) -> list[str]:
    """With their folders resolved, each once: a year has thousands of files in a few of them."""
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return [f"{folders[path.parent]}/{path.name}" for path in paths]


def _sources(parquet: Sequence[Path], lines: Sequence[Path]) -> tuple[str, list[list[str]]]:
    sources, files = [], []
    for query, paths in ((_FROM_PARQUET, parquet), (_FROM_JSON, lines)):
        if paths:
            sources.append(query)
            files.append(_real(paths))
    return " UNION ALL ".join(sources), files


def _event(row: Iterable[Any]) -> Event | None:
    fields = {name: value for name, value in zip(COLUMNS, row, strict=True) if value is not None}
    who = {name: fields.pop(f"who_{name}") for name in WHO_COLUMNS if f"who_{name}" in fields}
    try:
        if "tls" in fields:
            fields["tls"] = msgspec.json.decode(fields["tls"])
        return msgspec.convert({**fields, "who": who}, Event)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _quoted(path: Path) -> str:
    return "'" + str(path.resolve()).replace("'", "''") + "'"
