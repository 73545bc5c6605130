"""``ironcd jobs`` and ``ironcd runners``: what is asked for, and how the answer is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from orchestrator.surface import cli
from orchestrator.surface.api_client import ApiClient

Run = Callable[..., str]

WAITS = {
    "id": 7, "repo": "acme/app", "name": "build", "state": "queued", "labels": ["ironcd"],
    "reason": "the quota of repository acme/app is used up: 3 of 3 runners",
    "wait": {"place": 2, "of": 9, "kind": "quota", "reason": "the quota ...", "for_s": 125.0},
}  # fmt: skip
STAGES = [
    {"name": "delivered", "title": "GitHub's delivery received", "state": "done", "at": 1700000000.0, "took_s": 0.4, "why": ""},
    {"name": "class", "title": "class matched", "state": "done", "at": 1700000001.0, "took_s": 1.0, "why": "class 'ironcd'"},
    {"name": "quota", "title": "waited for a quota", "state": "now", "at": None, "took_s": 125.0, "why": "the quota ..."},
    {"name": "host", "title": "host found", "state": "to come", "at": None, "took_s": None, "why": ""},
]  # fmt: skip
STORY = [{"at": 1700000000.0, "who": "job", "what": "queued", "detail": "delivery received"}]
NOT_OURS = {
    "id": 8, "repo": "acme/app", "name": "deploy\x1b[31m", "state": "queued", "labels": ["irond"],
    "reason": "no label of ours; the nearest is 'ironcd'", "wait": None,
}  # fmt: skip


class Plane:
    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []
        self.answers: dict[str, Any] = {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        found = self.answers.get(request.url.path.removeprefix("/api/v1/"))
        return httpx.Response(404, json={}) if found is None else httpx.Response(200, json=found)


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Plane:
    made = Plane()
    client = ApiClient("http://test", "t", transport=httpx.MockTransport(made.answer))
    monkeypatch.setattr(ApiClient, "of", lambda _settings: client)
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*argv: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["ironcd", *argv])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert int(ended.value.code or 0) == status
        return capsys.readouterr().out

    return command


def test_those_that_wait_with_their_place_and_reason(plane: Plane, run: Run) -> None:
    plane.answers["jobs"] = {"jobs": [WAITS], "total": 9}
    shown = run("jobs", "list", "--waiting", "--repo", "acme/app")
    assert dict(plane.asked[0].url.params) == {"repo": "acme/app", "limit": "100", "waiting": "true"}
    for words in ("2 of 9", "acme/app", "2 min 05 s", "quota", "3 of 3 runners", "... and 8 more"):
        assert words in shown


def test_those_that_are_not_ours(plane: Plane, run: Run) -> None:
    plane.answers["jobs"] = {"jobs": [NOT_OURS], "total": 1}
    shown = run("jobs", "list", "--unserved")
    assert plane.asked[0].url.params["unserved"] == "true"
    assert "the nearest is 'ironcd'" in shown
    assert "\x1b" not in shown


def test_json_is_what_the_plane_said(plane: Plane, run: Run) -> None:
    plane.answers["jobs"] = {"jobs": [WAITS], "total": 1}
    assert json.loads(run("jobs", "list", "--waiting", "--json")) == [WAITS]
    plane.answers["jobs/7"] = {**WAITS, "stages": STAGES, "story": STORY}
    assert json.loads(run("jobs", "show", "7", "--json"))["stages"] == STAGES


def test_a_jobs_stages_and_what_it_waits_for(plane: Plane, run: Run) -> None:
    plane.answers["jobs/7"] = {**WAITS, "stages": STAGES, "story": STORY}
    lines = run("jobs", "show", "7").splitlines()
    rows = {
        words: next((line for line in lines if words in line), "")
        for words in ("class matched", "waited for", "host found")
    }
    assert rows["class matched"].split()[2:] == ["done", "22:13:21", "1.0", "s", "class", "'ironcd'"]
    assert "now" in rows["waited for"]
    assert "2 min 05 s" in rows["waited for"]
    assert "to come" in rows["host found"]
    assert any("place in the line" in line and "2 of 9" in line for line in lines)
    assert any("delivery received" in line for line in lines)


def test_times_of_another_day_say_which_and_each_line_whose_it_is(plane: Plane, run: Run) -> None:
    day = 86400.0
    stages = [STAGES[0], STAGES[1] | {"at": 1700000001.0 + day}]
    story = [*STORY, {"at": 1700000001.0 + day, "who": "01HF7YAT00SP5WK684R668N99M", "what": "BOOTING", "detail": ""}]
    plane.answers["jobs/7"] = {**WAITS, "created_at": 1700000000.0, "stages": stages, "story": story}
    lines = run("jobs", "show", "7").splitlines()
    assert any("queued at" in line and "2023-11-14 22:13:20 UTC" in line for line in lines)
    (passed,) = (line for line in lines if "class matched" in line)
    assert "2023-11-15 22:13:21" in passed
    (booting,) = (line for line in lines if "BOOTING" in line)
    assert booting.split()[2:] == ["+24", "h", "00", "min", "..8N99M", "BOOTING"]


def test_runners_that_failed_are_told_with_why(plane: Plane, run: Run) -> None:
    failure = {"code": "guest-silent", "message": "its guest said nothing", "console": "Kernel panic"}
    made = [
        {"id": "01HF7YAT00SP5WK684R668N99M", "host": "h1", "start": "cold", "phase": "GONE", "failure": failure},
        {"id": "01HF7YAT00SP5WK684R668N99N", "host": "h2", "start": "clone", "phase": "RUNNING", "failure": None},
    ]
    plane.answers["jobs/7"] = {**WAITS, "stages": STAGES, "story": STORY, "made_for_it": made}
    shown = run("jobs", "show", "7")
    (row,) = (line for line in shown.splitlines() if "N99M " in line)
    assert row.split()[1:] == ["h1", "cold", "GONE", "guest-silent:", "its", "guest", "said", "nothing"]
    assert "Kernel panic" not in shown
    assert "made_for_it[].failure.console" in shown


def test_a_job_that_nobody_knows(plane: Plane, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys.stderr, "write", said.append)
    run("jobs", "show", "9", status=2)
    assert "no delivery told of it" in "".join(said)
    assert "job-unknown" in "".join(said)


def test_runners_that_are_gone_only_where_they_are_asked_for(plane: Plane, run: Run) -> None:
    runner = {
        "id": "01HF7YAT00SP5WK684R668N99M", "phase": "READY", "since": 0.0, "machine": {"name": "ironcd"}, "host": "h1",
        "repo": "acme/app", "job_id": 0, "reason": "", "waiting": "GitHub slows us down",
    }  # fmt: skip
    plane.answers["runners"] = {"runners": [runner]}
    assert "GitHub slows us down" in run("runners", "list", "--host", "h1", "--phase", "ready")
    assert dict(plane.asked[-1].url.params) == {"gone": "false", "host": "h1", "phase": "READY"}
    assert json.loads(run("runners", "list", "--gone", "--json")) == [runner]
    assert dict(plane.asked[-1].url.params) == {"gone": "true"}
