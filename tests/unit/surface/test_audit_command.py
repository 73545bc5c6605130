"""``ironcd audit`` on a record that the gateway's own ledger wrote and the control plane's own receiver filed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.audit import Ledger as Received
from orchestrator.core.flow import Event, Identity
from orchestrator.core.wire import LedgerBatch
from orchestrator.egress.checkpoint import load_signer
from orchestrator.egress.ledger import Ledger
from orchestrator.surface import cli
from orchestrator.surface.api_client import ApiClient

NOW = time.time()
ULID = "01JF0000000000000000000000"


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ironcd", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def event(ts: float, **changes: Any) -> Event:
    fields: dict[str, Any] = {
        "event": "open", "ts": ts, "seq": 0, "gateway": "", "who": Identity(ULID, repo="acme/app", job_id=3),
        "protocol": "tls", "verdict": "allowed", "reason": "rule", "host": "allowed.example", "port": 443,
    }  # fmt: skip
    return Event(**{**fields, **changes})


class Hosts:
    """A host's own folder and the control plane's record of it, ``age`` seconds old."""

    def __init__(self, folder: Path, age: float = 0.0) -> None:
        self.state, self.record = folder / "host", folder / "control" / "audit"
        self.state.mkdir()
        at = NOW - age
        signer = load_signer("h1", self.state)
        ledger = Ledger(self.state / "ledger", gateway="h1", signer=signer, clock=lambda: at)
        for number in range(9):
            ledger.append(event(at + number, verdict="blocked" if number % 3 == 0 else "allowed"))
            ledger.commit()
            if number % 4 == 0:
                ledger.checkpoint()
        ledger.close()
        (day,) = (self.state / "ledger").glob("????-??-??.jsonl")
        notes = [
            json.loads(line)["note"] for line in (self.state / "ledger/checkpoints.jsonl").read_text().splitlines()
        ]
        received = Received(self.record, clock=lambda: at)
        asyncio.run(
            received.receive(LedgerBatch("h1", 1, tuple(day.read_text().splitlines()), tuple(notes), signer.verifier))
        )
        self.days = self.record / "h1" / day.name


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    import os

    for name in list(os.environ):
        if name.startswith("IRONCD_"):
            monkeypatch.delenv(name)
    (tmp_path / "ironcd.toml").write_text(f'[control]\nstate_dir = "{tmp_path / "control"}"\n')
    return ["--config", str(tmp_path / "ironcd.toml"), "audit"]


def test_verify_passes_what_nobody_touched(config, tmp_path, monkeypatch, capsys):
    Hosts(tmp_path)
    assert run(monkeypatch, *config, "verify") == 0
    assert "h1: intact: 9 records (1 to 9), 3 signed checkpoints, signed up to 9" in capsys.readouterr().out


def test_verify_reads_the_hosts_own_folder_and_holds_one_against_the_other(config, tmp_path, monkeypatch, capsys):
    hosts = Hosts(tmp_path)
    assert run(monkeypatch, *config, "verify", "--dir", str(hosts.state / "ledger"), "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)["ledgers"]
    assert (report["host"], report["records"], report["checkpoints"]) == ("h1", 9, 3)
    assert (report["intact"], report["findings"], report["notes"]) == (True, [], [])
    kept = hosts.record / "h1" / "checkpoints.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:1]))
    hosts.days.write_bytes(b"".join(hosts.days.read_bytes().splitlines(keepends=True)[:4]))
    assert run(monkeypatch, *config, "verify") == 0
    capsys.readouterr()
    assert run(monkeypatch, *config, "verify", "--against", str(hosts.state / "ledger/checkpoints.jsonl")) == 1
    assert f"cut-off: {hosts.days}:4: the host signed 9 records, and there are 4" in capsys.readouterr().out


def test_verify_names_the_record_that_was_edited(config, tmp_path, monkeypatch, capsys):
    hosts = Hosts(tmp_path)
    lines = hosts.days.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"blocked"', b'"allowed"')
    hosts.days.write_bytes(b"".join(lines))
    assert run(monkeypatch, *config, "verify", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    (finding,) = found["ledgers"][0]["findings"]
    assert (found["intact"], finding["kind"], finding["line"], finding["seq"]) == (False, "edited", 4, 4)
    assert finding["file"] == str(hosts.days)


def test_verify_of_nothing_is_an_error(config, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *config, "verify") == 2
    Hosts(tmp_path)
    assert run(monkeypatch, *config, "verify", "--host", "h2") == 2
    assert "no-ledger" in capsys.readouterr().err


def test_a_key_that_the_configuration_doesnt_have(config, tmp_path, monkeypatch, capsys):
    Hosts(tmp_path)
    with (tmp_path / "ironcd.toml").open("a") as file:
        file.write('[audit.host_keys]\nh1 = ["ironcd/h1+00000000+AAAA"]\n')
    assert run(monkeypatch, *config, "verify") == 1
    assert "key: " in capsys.readouterr().out


def test_deleting_and_holding(config, tmp_path, monkeypatch, capsys):
    from orchestrator.audit.engine import Engine
    from orchestrator.audit.seal import seal_all

    hosts = Hosts(tmp_path, age=400 * 86400.0)
    engine = Engine(hosts.record)
    seal_all(hosts.record, engine, NOW)
    engine.close()
    assert run(monkeypatch, *config, "hold", "add", "case-1", "--reason", "counsel", "--job", "3") == 0
    assert run(monkeypatch, *config, "hold", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])[0]["job"] == 3
    assert run(monkeypatch, *config, "hold", "list") == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "job=3", "and no bounds in time, for it has none"
    assert run(monkeypatch, *config, "retain", "--json") == 0
    (day,) = json.loads(capsys.readouterr().out)["days"]
    assert (day["held"], day.get("egress", 0)) == (6, 0)
    assert run(monkeypatch, *config, "hold", "remove", "case-1") == 0
    assert run(monkeypatch, *config, "retain", "--dry-run") == 0
    assert "6 records would be deleted" in capsys.readouterr().out
    assert run(monkeypatch, *config, "retain") == 0
    assert "6 records deleted" in capsys.readouterr().out
    assert run(monkeypatch, *config, "verify") == 0
    assert "h1: intact: 3 records (1 to 9)" in (out := capsys.readouterr().out)
    assert "6 deleted by retention, proof intact" in out


class Api:
    """Answers as the control plane does, out of ``events``."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events
        self.asked: list[dict[str, Any]] = []

    def get(self, _path: str, asked: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(asked)
        found = [one for one in self.events if asked["since"] <= one["ts"] < asked["until"]]
        if asked["cursor"]:
            found = [one for one in found if one["seq"] < int(asked["cursor"])]
        page = found[-2:]
        return {"events": page, "cursor": str(page[0]["seq"]) if len(found) > 2 else ""}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    import msgspec

    made = Api([msgspec.to_builtins(event(NOW - 3 * 86400 + 3600 * n, seq=n, gateway="h1")) for n in range(1, 70)])
    monkeypatch.setattr(ApiClient, "of", lambda _settings: made)
    return made


@pytest.mark.parametrize("form", ["jsonl", "csv", "ocsf", "cef"])
def test_export_writes_all_in_order(form, config, api, monkeypatch, capsys):
    assert run(monkeypatch, *config, "export", "--format", form, "--since", "3d", "--vm", f"ironcd-{ULID.lower()}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 69 + (form == "csv")
    if form == "jsonl":
        assert [json.loads(line)["seq"] for line in lines] == list(range(1, 70))
    assert {asked["runner"] for asked in api.asked} == {ULID}


def test_export_of_a_busy_moment_comes_in_order_too(config, api, monkeypatch, capsys):
    import msgspec

    at = NOW - 3600
    api.events = [msgspec.to_builtins(event(at + n * 1e-4, seq=n, gateway="h1")) for n in range(1, 30)]
    assert run(monkeypatch, *config, "export", "--format", "jsonl", "--since", "2h") == 0
    assert [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()] == list(range(1, 30))


@pytest.mark.parametrize(
    "argv", [("--format", "xml"), ("--format", "csv", "--vm", "x"), ("--format", "csv", "--since", "x")]
)
def test_export_refuses(argv, config, api, monkeypatch, capsys):
    assert run(monkeypatch, *config, "export", *argv) == 2
    assert "bad-option" in capsys.readouterr().err
