"""The command itself: help, errors in words, exit statuses, and no import that it doesn't need."""

from __future__ import annotations

import json
import sys

import pytest

from orchestrator.core.errors import ConfigurationError
from orchestrator.surface import cli
from orchestrator.surface.cli.audit import moment


def run(monkeypatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ironcd", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_version_as_json(monkeypatch, capsys):
    assert run(monkeypatch, "version", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"ironcd", "python", "githubkit", "rq"}


def test_an_error_is_a_message_a_remedy_and_a_link(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "--config", str(tmp_path / "no.toml"), "jobs", "list") == 2
    err = capsys.readouterr().err
    assert "error: cannot read" in err
    assert "remedy: " in err
    assert "more: docs/operations/errors.md#config-unreadable" in err
    assert "Traceback" not in err


def test_what_an_error_quotes_cannot_act_on_the_terminal(capsys):
    cli.show(ConfigurationError("bad \x1b[2J name\nsecond line", code="c", remedy="none \u202e"))
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert "    second line" in err


def test_an_error_shows_no_secret(capsys):
    cli.show(ConfigurationError("refused ghs_" + "a" * 36, code="c", remedy="r"))
    assert "ghs_" not in capsys.readouterr().err


def test_an_unforeseen_error_is_one_line(monkeypatch, capsys):
    from orchestrator.surface.cli import app

    monkeypatch.delenv("IRONCD_DEBUG", raising=False)
    monkeypatch.setattr(app.metadata, "version", lambda _name: 1 / 0)
    assert run(monkeypatch, "version") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ZeroDivisionError")
    assert "Traceback" not in err


@pytest.mark.parametrize("argv", [("--help",), ("jobs", "--help"), ("audit", "egress", "--help"), ("up", "--help")])
def test_help(monkeypatch, capsys, argv):
    assert run(monkeypatch, *argv) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "at"), [("90s", 910.0), ("2m", 880.0), ("1970-01-01T00:05:00Z", 300.0), ("1970-01-01T00:05:00", 300.0)]
)
def test_moment(text, at):
    assert moment(text, 1000.0) == at


@pytest.mark.parametrize("text", ["yesterday", "5y", "-3h", "", "99999999999999999999s"])
def test_moment_refuses_the_rest(text):
    with pytest.raises(Exception, match="neither an age nor a time"):
        moment(text, 0.0)


def test_inspect_gives_a_reason_for_what_is_no_hello(monkeypatch, capsys, tmp_path):
    (tmp_path / "x").write_bytes(b"GET / HTTP/1.1\r\n\r\n")
    assert run(monkeypatch, "egress", "inspect", str(tmp_path / "x")) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["name"] is None
    assert answer["reason"]


def test_presets_are_listed_and_one_is_shown_by_any_of_its_names(monkeypatch, capsys):
    assert run(monkeypatch, "egress", "presets", "--json") == 0
    names = {preset["name"] for preset in json.loads(capsys.readouterr().out)}
    assert {"github", "node", "pypi", "apt"} <= names
    assert run(monkeypatch, "egress", "presets", "nodejs") == 0
    assert "nodejs.org" in capsys.readouterr().out


def test_an_unknown_preset_has_a_nearest(monkeypatch, capsys):
    assert run(monkeypatch, "egress", "presets", "pypy") == 2
    assert "Did you mean 'pypi'?" in capsys.readouterr().err


def test_a_good_policy_shows_its_rules_and_where_they_are_written(monkeypatch, capsys, tmp_path):
    file = tmp_path / "policy.yml"
    file.write_text("mode: warn\nallow:\n  - host: api.example.com\n")
    assert run(monkeypatch, "egress", "check", str(file)) == 0
    out = capsys.readouterr().out
    assert "api.example.com" in out
    assert f"{file}:3" in out
    assert "mode warn" in out


def test_a_bad_policy_is_refused_with_every_place(monkeypatch, capsys, tmp_path):
    file = tmp_path / "policy.yml"
    file.write_text("mode: enforced\nallow:\n  - hosts: a.b\n")
    assert run(monkeypatch, "egress", "check", str(file)) == 2
    err = capsys.readouterr().err
    assert f"{file}:1:7" in err
    assert f"{file}:3:5" in err
    assert run(monkeypatch, "egress", "check", str(file), "--json") == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], len(answer["errors"])) == (False, 2)


def test_a_repository_may_not_go_beyond_its_organisation(monkeypatch, capsys, tmp_path):
    (tmp_path / "org.yml").write_text("mode: enforce\nallow:\n  - host: api.example.com\n")
    (tmp_path / "repo.yml").write_text("mode: enforce\nallow:\n  - host: other.example.com\n")
    argv = ("egress", "check", str(tmp_path / "repo.yml"), "--under", str(tmp_path / "org.yml"))
    assert run(monkeypatch, *argv) == 2
    assert "other.example.com" in capsys.readouterr().err


def test_an_image_is_not_built_without_a_pinned_runner(monkeypatch, capsys):
    assert run(monkeypatch, "image", "build", "--runner-version", "2.336.0") == 2
    assert "--runner-sha256" in capsys.readouterr().err
