"""``ironcd templates``: what is listed; which ones a removal means, what is asked of the control plane, and what is said of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import httpx
import pytest

from orchestrator.surface import cli
from orchestrator.surface.api_client import ApiClient

Run = Callable[..., int]

SMALL, LARGE, OLD = "3f1c" + "0" * 60, "3f77" + "0" * 60, "abcd" + "0" * 60


def template(key: str, *classes: str, **more: object) -> dict[str, object]:
    return {"key": key, "classes": list(classes), "image": "1" * 64, "state": "ready", "since": 5.0} | more


FAILED = {"state": "failed", "reason": "no memory", "clones": 2, "disk_bytes": 300 << 20}
HOSTS = [
    {"host": "h1", "templates": [template(SMALL, "abc", "ironcd"), template(LARGE, "large", **FAILED)]},
    {"host": "h 2", "templates": [template(SMALL, "ironcd"), template(OLD)]},
    {"host": "h3"},
]


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Host and key of each template that the control plane was told to have removed."""
    orders: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            assert request.url.path == "/api/v1/hosts"
            return httpx.Response(200, json={"hosts": HOSTS})
        *_, host, order = request.url.path.split("/")
        assert order == "remove-template"
        orders.append((host, request.url.params["key"]))
        return httpx.Response(200, json={})

    client = ApiClient("http://test", "t", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(ApiClient, "of", lambda _settings: client)
    return orders


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def command(*argv: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ironcd", "templates", *argv])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return command


def test_all_are_listed_with_why_one_isnt_ready(
    removed: list[tuple[str, str]], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["host"], one["key"]) for one in found] == [("h1", SMALL), ("h1", LARGE), ("h 2", SMALL), ("h 2", OLD)]
    assert run("list") == 0
    shown = capsys.readouterr().out
    for words in ("3f7700000000 large", "failed", "no memory", "300", "(none any more)"):
        assert words in " ".join(shown.split())
    assert removed == []


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (("ironcd",), [("h1", SMALL), ("h 2", SMALL)]),
        (("ironcd", "h1"), [("h1", SMALL)]),
        (("3f77",), [("h1", LARGE)]),
        (("3F1C", "h 2"), [("h 2", SMALL)]),
        ((OLD,), [("h 2", OLD)]),
        (("abc",), [("h1", SMALL)]),
    ],
)
def test_which_are_meant(
    removed: list[tuple[str, str]], run: Run, argv: tuple[str, ...], meant: list[tuple[str, str]]
) -> None:
    assert run("remove", *argv) == 0
    assert removed == meant


def test_what_comes_of_it_is_said(removed: list[tuple[str, str]], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("remove", "ironcd", "h1")
    assert capsys.readouterr().out == (
        "h1 removes 3f1c00000000, and makes it anew where there is room: abc, ironcd starts from it\n"
    )
    run("remove", "abcd")
    assert capsys.readouterr().out == "h 2 removes abcd00000000\n"
    run("remove", "large", "--json")
    assert json.loads(capsys.readouterr().out) == [{"host": "h1", "key": LARGE, "classes": ["large"]}]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("nobody",), "no host has a template 'nobody'"),
        (("large", "h3"), "h3 has no template 'large'"),
        (("3f",), "more than one"),
        (("",), "no host has a template"),
    ],
)
def test_what_is_none_is_said_and_nothing_removed(
    removed: list[tuple[str, str]], run: Run, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert run("remove", *argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "remedy: " in err
    assert "errors.md#template-unknown" in err
    assert removed == []
