"""``ironcd audit egress --follow``: on through restarts of the control plane and of the command, without loss or repetition."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.core.errors import OperationalError, UserError
from orchestrator.surface.api_client import _messages
from orchestrator.surface.egress.follow import Stop, follow_events


def away() -> OperationalError:
    return OperationalError("the control plane doesn't answer", code="control-unreachable", remedy="Start it.")


class Control:
    """Has events 1, 2, ... of which each connection gives some; a number in ``script`` is how many, an error breaks it."""

    def __init__(self, script: list[int | OperationalError]) -> None:
        self.script = script
        self.asked: list[str] = []

    def stream(self, _path: str, params: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        at = int(params["after"] or 0)
        self.asked.append(params["after"] or "")
        if not self.script:
            raise KeyboardInterrupt
        step = self.script.pop(0)
        for _ in range(step if isinstance(step, int) else 1):
            yield str(at), b""
            yield str(at + 2), msgspec.json.encode([{"seq": at + 1}, {"seq": at + 2}])
            at += 2
        if isinstance(step, OperationalError):
            raise step


def follow(control: Control, place_file: Path | None = None, *, at: int = 0, ends: int = 0) -> list[int]:
    """The numbers of the events that were taken; at event ``at`` the signal ``ends`` comes, or a kill."""
    got: list[int] = []
    stop = Stop()

    def take(event: dict[str, Any]) -> None:
        got.append(event["seq"])
        if event["seq"] == at and not ends:
            raise KeyboardInterrupt
        if event["seq"] == at:
            stop(ends)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        follow_events(control, {}, take, place_file, stop=stop, sleep=lambda _: None)  # type: ignore[arg-type]
    return got


def test_connections_that_end_or_break(capsys: pytest.CaptureFixture[str]) -> None:
    control = Control([1, away(), away(), 2])
    assert follow(control) == list(range(1, 11))
    assert control.asked == ["", "2", "4", "6", "10"]
    assert capsys.readouterr().err.count("trying again") == 2


def test_the_place_file_is_where_the_next_run_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert follow(Control([2]), place) == [1, 2, 3, 4]
    assert place.read_text() == "4\n"
    assert follow(Control([1]), place) == [5, 6]


def test_a_kill_in_the_middle_of_a_message_loses_none(tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert follow(Control([5]), place, at=3) == [1, 2, 3]
    assert follow(Control([1]), place) == [3, 4]


def test_a_signal_in_the_middle_of_a_message_ends_it_behind_that_message(tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert follow(Control([5]), place, at=3, ends=signal.SIGTERM) == [1, 2, 3, 4]
    assert follow(Control([1]), place) == [5, 6]


def test_a_signal_while_nothing_comes_ends_it_at_once() -> None:
    with pytest.raises(SystemExit) as ended:
        Stop()(signal.SIGTERM)
    assert ended.value.code == 0
    with pytest.raises(KeyboardInterrupt):
        Stop()(signal.SIGINT)


def test_a_control_plane_that_cant_be_reached_at_first_is_an_error() -> None:
    class Away(Control):
        def stream(self, _path: str, params: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
            raise away()

    with pytest.raises(OperationalError):
        follow_events(Away([]), {}, print)  # type: ignore[arg-type]


def test_a_place_file_that_cant_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        follow_events(Control([1]), {}, print, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="can't be written"):
        follow_events(Control([1]), {}, print, tmp_path / "none" / "place")  # type: ignore[arg-type]


def test_messages_of_a_stream() -> None:
    lines = ["id: a", ": nothing new", "", "id: b", "data: [1]", "", "id: c", "data: [2"]
    assert list(_messages(lines)) == [("a", b""), ("b", b"[1]")]
