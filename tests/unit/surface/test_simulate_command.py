"""``ironcd simulate``: what a running simulator is asked for, and what never leaves this machine."""

from __future__ import annotations

import json
import sys

import httpx
import pytest

from orchestrator.surface import cli

AT = ("--at", "http://127.0.0.1:8480")


@pytest.fixture
def asked(monkeypatch):
    requests = []

    def answer(method, url, **more):
        requests.append((method, url, more.get("json")))
        parts = {"responses": [{"name": "outage"}], "deliveries": [], "quirks": [], "acts": []}
        return httpx.Response(
            200, json={**parts, "used": {"outage": 2, "ghost": 1}}, request=httpx.Request(method, url)
        )

    monkeypatch.setattr(httpx, "request", answer)
    return requests


def run(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["ironcd", "simulate", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_name_of_a_fault_is_a_command(monkeypatch, asked):
    argv = ("delivery-late", "--for", "5m", "--count", "4", "--by", "3m", "--repository", "acme/app", *AT)
    assert run(monkeypatch, *argv) == 0
    wanted = {"in_s": 0.0, "chance": 1.0, "by_s": 180.0, "repository": "acme/app", "for_s": 300.0, "count": 4}
    assert asked == [("POST", "http://127.0.0.1:8480/_sim/faults/delivery-late", wanted)]


def test_an_unknown_fault_is_refused_with_the_nearest(monkeypatch, asked, capsys):
    assert run(monkeypatch, "outrage", *AT) == 2
    assert "Did you mean outage?" in capsys.readouterr().err
    assert asked == []


def test_a_folder_is_a_command_too(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr("os.execv", lambda _program, argv: started.append(argv))
    run(monkeypatch, str(tmp_path / "github"), "--port", "8480")
    assert started[0][2] == "orchestrator.simulator"
    assert json.loads((tmp_path / "github/simulator.json").read_text())["port"] == 8480


def test_what_is_in_force(monkeypatch, asked, capsys):
    assert run(monkeypatch, "faults", "show", *AT) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [["ghost", "over"], ["outage", "in"]]


def test_a_file_is_loaded_whole_or_not_at_all(monkeypatch, asked, tmp_path, capsys):
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text("faults:\n  - {fault: outage, in: 1m, for: 5m}\n  - fault: ghost\n")
    bad.write_text("faults:\n  - {fault: outage}\n  - {fault: goats}\n")
    assert run(monkeypatch, "faults", "load", str(good), *AT) == 0
    assert [url.rpartition("/")[2] for _method, url, _body in asked] == ["outage", "ghost"]
    asked.clear()
    assert run(monkeypatch, "faults", "load", str(bad), *AT) == 2
    assert "bad.yml:3:" in capsys.readouterr().err
    assert asked == []


def test_only_a_simulator_on_this_machine_is_ever_asked(monkeypatch, asked, capsys):
    assert run(monkeypatch, "outage", "--at", "https://api.github.com") == 2
    assert "not a simulator" in capsys.readouterr().err
    assert asked == []


def test_bad_times(monkeypatch, asked, capsys):
    assert run(monkeypatch, "outage", "--for", "soon", *AT) == 2
    assert "--for 'soon' isn't a time" in capsys.readouterr().err
