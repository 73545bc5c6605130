"""``ironcd hosts cordon`` and ``uncordon``: what is asked of the control plane, and what is said of its answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import httpx
import pytest

from orchestrator.surface import cli
from orchestrator.surface.api_client import ApiClient
from orchestrator.surface.cli import hosts_drain

Run = Callable[..., int]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """The requests that the command made, to a control plane that knows host h1 only."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        known = "/h1/" in request.url.path
        return httpx.Response(200 if known else 404, json={})

    client = ApiClient("http://test", "t", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(ApiClient, "of", lambda _settings: client)
    return requests


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def command(*argv: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ironcd", "hosts", *argv])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return command


def test_cordon(asked: list[httpx.Request], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cordon", "h1", "--why", "new kernel") == 0
    (request,) = asked
    assert (request.method, request.url.path) == ("POST", "/api/v1/hosts/h1/cordon")
    assert request.url.params["why"] == "new kernel"
    assert "h1 is cordoned" in capsys.readouterr().out


def test_uncordon(asked: list[httpx.Request], run: Run) -> None:
    assert run("uncordon", "h1") == 0
    assert [request.url.path for request in asked] == ["/api/v1/hosts/h1/uncordon"]


def test_a_host_that_nobody_knows(asked: list[httpx.Request], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cordon", "a/b") != 0
    assert [request.url.raw_path for request in asked] == [b"/api/v1/hosts/a%2Fb/cordon?why="]
    assert "error: " in capsys.readouterr().err


def test_a_quarantine_stands_among_a_hosts_problems(
    monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    host = {
        "host": "h1",
        "state": "quarantine",
        "quarantine": {"reason": "3 starts failed"},
        "unfit": {"default": "old"},
        "problems": [{"code": "a", "message": "it is"}, {"code": "b", "message": "it was", "over": True}],
    }
    answer = httpx.MockTransport(lambda _request: httpx.Response(200, json={"hosts": [host]}))
    client = ApiClient("http://test", "t", transport=answer)
    monkeypatch.setattr(ApiClient, "of", lambda _settings: client)
    assert run("list") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 starts failed" in shown
    assert "image default: old" in shown
    assert "it is; it was (over)" in shown


def test_the_list_shows_how_many_machines_wait_of_how_many_should(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = [
        {"host": "h1", "state": "up", "warm": [{"id": "x"}], "warm_wanted": {"ironcd": 2, "ironcd-large": 1}},
        {"host": "h2", "state": "up", "warm": [], "warm_wanted": {}},
    ]
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, json={"hosts": hosts}))
    monkeypatch.setattr(ApiClient, "of", lambda _settings: ApiClient("http://test", "t", transport=transport))
    assert run("list") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("h")}
    assert "1/3" in lines["h1"]
    assert "/" not in lines["h2"]


class Plane:
    """A control plane that answers with how far the drain of h1 is, one answer after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: dict[str, object]) -> None:
        self.asked: list[httpx.Request] = []
        self._answers = list(answers)
        monkeypatch.setattr(ApiClient, "of", lambda _settings: self._client("/api/v1"))
        monkeypatch.setattr(ApiClient, "of_host", lambda _settings: self._client("/host/v1"))
        monkeypatch.setattr(hosts_drain, "LOOK_S", 0.0)

    def _client(self, prefix: str) -> ApiClient:
        return ApiClient("http://test", "t", prefix=prefix, transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if "nobody" in request.url.path:
            return httpx.Response(404, json={})
        return httpx.Response(200, json=self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])


def far(runners: int, busy: int, left_s: float = 60.0, *, draining: bool = True) -> dict[str, object]:
    seen = {"host": "h1", "draining": draining, "runners": runners, "busy": busy, "empty": not runners}
    return {**seen, "left_s": left_s}


def test_drain(monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    plane = Plane(monkeypatch, far(3, 2, 3600.0))
    assert run("drain", "h1", "--deadline", "1h", "--why", "new kernel") == 0
    (request,) = plane.asked
    assert (request.method, request.url.path) == ("POST", "/api/v1/hosts/h1/drain")
    assert dict(request.url.params) == {"deadline_s": "3600.0", "why": "new kernel"}
    assert capsys.readouterr().out == "h1: 2 with a job, 1 without; jobs have 1 h 00 min left\n"


def test_drain_waits_and_tells_what_changes(
    monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Plane(monkeypatch, far(2, 1), far(2, 1, 58.0), far(2, 1, 56.0), far(1, 1, 54.0), far(0, 0, 50.0))
    assert run("drain", "h1", "--wait") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "h1: 1 with a job, 1 without; jobs have 58.0 s left",
        "h1: 1 with a job, 0 without; jobs have 54.0 s left",
        "h1 is empty",
    ]


def test_drain_that_is_taken_back_or_stuck_fails(
    monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Plane(monkeypatch, far(2, 1), far(2, 1, draining=False))
    assert run("drain", "h1", "--wait") == 1
    assert "drain-lifted" in capsys.readouterr().err
    monkeypatch.setattr(hosts_drain, "STUCK_S", 0.0)
    Plane(monkeypatch, far(1, 1), far(1, 1, 0.0))
    assert run("drain", "h1", "--wait") == 1
    assert "drain-stuck" in capsys.readouterr().err


def test_a_host_drains_itself_with_its_own_token(
    monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    plane = Plane(monkeypatch, far(0, 0))
    assert run("drain", "--this", "--deadline", "10m", "--wait", "--json") == 0
    assert [request.url.path for request in plane.asked] == ["/host/v1/drain", "/host/v1/drain"]
    assert json.loads(capsys.readouterr().out)["empty"] is True
    plane = Plane(monkeypatch, far(0, 0, draining=False))
    assert run("undrain", "--this") == 0
    assert [request.url.path for request in plane.asked] == ["/host/v1/undrain"]
    assert capsys.readouterr().out == "h1 takes runners again\n"


@pytest.mark.parametrize(
    "argv",
    [("drain",), ("drain", "h1", "--this"), ("drain", "h1", "--deadline", "soon"), ("drain", "h1", "--deadline", "")],
)
def test_what_cannot_be_asked_of_drain(monkeypatch: pytest.MonkeyPatch, run: Run, argv: tuple[str, ...]) -> None:
    plane = Plane(monkeypatch, far(0, 0))
    assert run(*argv) == 2
    assert plane.asked == []


def test_draining_a_host_that_nobody_knows(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    Plane(monkeypatch, far(0, 0))
    assert run("drain", "nobody", "--wait") == 2


def test_the_list_counts_down(monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    host = {"host": "h1", "state": "draining", "runners": ["a"], "drain": {**far(1, 1, 125.0), "why": "new kernel"}}
    Plane(monkeypatch, {"hosts": [host]})
    assert run("list") == 0
    assert "draining: 2 min 05 s left (new kernel)" in capsys.readouterr().out
