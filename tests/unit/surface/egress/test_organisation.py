"""The organisation's file, changed by the command: in place, as a whole, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.core.errors import OperationalError, UserError
from orchestrator.core.policy_edit import NewEntry
from orchestrator.surface.egress.organisation import OrganisationFile
from orchestrator.system.files import folder_locked
from policies import load_presets

from .conftest import POLICY, Run


def test_mode_is_shown_and_set(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mode") == 0
    assert capsys.readouterr().out == "enforce\n"
    assert run("mode", "warn") == 0
    assert (tmp_path / "policy.yml").read_text() == POLICY.replace("mode: enforce", "mode: warn")
    assert run("mode", "warn", "--json") == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["changed"] is False
    assert run("mode", "loud") == 2


def test_add_and_remove_keep_everything_else(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.yml").chmod(0o640)
    assert run("add", "--host", "NEW.example.com.", "--comment", "asked for by the shop", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "changed": True, "id": "org#4", "action": "allow", "what": "new.example.com", "line": 9,
        "file": str(tmp_path / "policy.yml"), "warnings": [],
    }  # fmt: skip
    text = (tmp_path / "policy.yml").read_text()
    assert [line for line in text.splitlines() if line not in POLICY.splitlines()] == [
        "  - {host: NEW.example.com., comment: asked for by the shop}"
    ]
    assert (tmp_path / "policy.yml").stat().st_mode & 0o777 == 0o640
    assert run("remove", "org#4") == 0
    assert (tmp_path / "policy.yml").read_text() == POLICY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ironcd.toml", "policy.yml", "token"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--host", "*"), "every host there is"),
        (("--host", "dns.google"), "DNS over HTTPS"),
        (("--host", "*.blob.core.windows.net"), "acknowledge"),
        (("--host", "x.example.com", "--port", "8443"), "no ports"),
        (("--cidr", "10.0.0.0/8", "--port", "22"), "floor"),
        (("--cidr", "203.0.113.0/24", "--port", "80"), "plain HTTP"),
        (("--preset", "nodde"), "there is no preset"),
        (("--host", "github.com", "--deny"), "every runner needs"),
        (("--host", "api.example.com", "--deny"), "a test doesn't hold"),
        (("--host", "x.example.com", "--comment", "a\x1b[2Jb"), ""),
        ((), "one of --host, --cidr and --preset"),
        (("--host", "a.example.com", "--cidr", "203.0.113.0/24"), "one of --host"),
    ],
)
def test_what_would_not_be_accepted_leaves_the_file_alone(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert run("add", *argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "remedy: " in err
    assert "\x1b" not in err
    assert (tmp_path / "policy.yml").read_text() == POLICY


def test_a_reason_makes_a_dangerous_host_acceptable(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add", "--host", "dns.google", "--acknowledge", "a test of our resolver") == 0
    capsys.readouterr()
    assert run("list", "--json") == 0
    rules = json.loads(capsys.readouterr().out)["rules"]
    assert next(rule for rule in rules if rule["host"] == "dns.google")["comment"].endswith("a test of our resolver")


def test_what_is_there_already_is_not_added_again(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add", "--host", "Api.Example.com", "--comment", "again") == 0
    assert "it is there already: org#2" in capsys.readouterr().out
    assert (tmp_path / "policy.yml").read_text() == POLICY
    assert run("add", "--host", "api.example.com", "--expect") == 0, "another list is another rule"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("builtin/github@1#1", "can't be taken out"),
        ("preset/node@1#2", "org#1 brings the preset node in"),
        ("preset/rust@1#2", "isn't in this file"),
        ("repo#1", "repository's"),
        ("org#99", "egress list"),
        ("nonsense", "egress list"),
    ],
)
def test_remove_says_where_a_rule_is_written(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, said: str
) -> None:
    assert run("remove", rule) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "policy.yml").read_text() == POLICY


def test_removing_what_a_test_needs_is_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("remove", "org#2") == 2
    assert "left as it was" in capsys.readouterr().err
    assert (tmp_path / "policy.yml").read_text() == POLICY


def test_list_has_every_rule_with_its_origin(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    ids = [rule["id"] for rule in shown["rules"]]
    assert {"builtin/github@1#1", "preset/node@1#1", "org#2", "org#3", "org#4"} <= set(ids)
    assert next(rule for rule in shown["rules"] if rule["id"] == "org#4")["origin"] == "policy.yml:11"
    assert run("list") == 0
    assert "*.cdn.example.com" in capsys.readouterr().out


def test_list_and_explain_know_what_the_image_adds(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", "registry.example.org") == 1
    assert "there is no image here" in capsys.readouterr().out
    folder = tmp_path / "cache" / "images" / "default"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"name": "default", "presets": {"node": ["registry.example.org"]}}')
    assert run("explain", "registry.example.org") == 0
    assert "preset/node@1#image-1" in capsys.readouterr().out
    assert run("list", "--json") == 0
    assert "preset/node@1#image-1" in {rule["id"] for rule in json.loads(capsys.readouterr().out)["rules"]}
    (folder / "manifest.json").write_text("{")
    assert run("list") == 2


def test_without_an_organisation_policy(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ironcd.toml").write_text("")
    assert run("list", "--json") == 0
    assert all(rule["id"].startswith("builtin/") for rule in json.loads(capsys.readouterr().out)["rules"])
    for argv in (("mode",), ("add", "--host", "a.example.com"), ("remove", "org#1")):
        assert run(*argv) == 2
        assert "policy.organisation_file" in capsys.readouterr().err


def test_a_file_that_is_broken_or_gone_is_refused_as_it_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "policy.yml").write_text("mode: [")
    assert run("mode", "warn") == 2
    assert (tmp_path / "policy.yml").read_text() == "mode: ["
    (tmp_path / "policy.yml").write_bytes(b"\xff\xfe")
    assert run("mode", "warn") == 2
    (tmp_path / "policy.yml").unlink()
    assert run("mode", "warn") == 2
    assert run("list") == 2


def test_two_commands_at_once_take_turns(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.surface.egress import organisation

    monkeypatch.setattr(organisation, "folder_locked", lambda path: folder_locked(path, wait_s=0.0))
    file = OrganisationFile(tmp_path / "policy.yml", load_presets())
    with folder_locked(tmp_path), pytest.raises(OperationalError, match="another command"):
        file.add(NewEntry(host="a.example.com"))
    assert file.add(NewEntry(host="a.example.com")).changed


def test_a_link_to_the_file_stays_a_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.rename(tmp_path / "policy.yml", tmp_path / "real" / "p.yml")
    (tmp_path / "policy.yml").symlink_to("real/p.yml")
    assert run("mode", "warn") == 0
    assert (tmp_path / "policy.yml").is_symlink()
    assert "mode: warn" in (tmp_path / "real" / "p.yml").read_text()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(UserError, match="No space left"):
        OrganisationFile(tmp_path / "policy.yml", load_presets()).set_mode("warn")
    assert (tmp_path / "policy.yml").read_text() == POLICY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ironcd.toml", "policy.yml", "token"]
