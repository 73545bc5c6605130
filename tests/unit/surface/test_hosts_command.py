"""``ironcd hosts cordon`` and ``uncordon``: what is asked of the control plane, and what is said of its answer."""

from __future__ import annotations

import sys
from collections.abc import Callable

import httpx
import pytest

from orchestrator.surface import cli
from orchestrator.surface.api_client import ApiClient

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
    }
    answer = httpx.MockTransport(lambda _request: httpx.Response(200, json={"hosts": [host]}))
    client = ApiClient("http://test", "t", transport=answer)
    monkeypatch.setattr(ApiClient, "of", lambda _settings: client)
    assert run("list") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 starts failed" in shown
    assert "image default: old" in shown


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
