"""``ironcd egress suggest`` and ``replay``, over files of the record and over the control plane's API."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from orchestrator.core.flow import Event, Identity
from orchestrator.core.policy_file import read_policy
from orchestrator.surface.api_client import ApiClient
from orchestrator.surface.egress import events as loader
from policies import load_presets

from .conftest import Run

PRESENT = "# ours\nmode: enforce\nallow:\n  # the API\n  - {host: api.example.com}\n"
NOW = time.time()


def event(seq: int, host: str, *, repo: str = "acme/app", job: int = 1, age: float = 60.0, **more: Any) -> Event:
    fields: dict[str, Any] = {"verdict": "blocked", "reason": "not_allowed", **more}
    who = Identity(runner="R", org="acme", repo=repo, run_id=1, job_id=job, job="build")
    return Event(
        event="open", ts=NOW - age, seq=seq, gateway="h1", who=who, protocol="tls", host=host, port=443, **fields
    )


EVENTS = [
    event(1, "new.example.org"),
    event(2, "new.example.org", job=2),
    event(3, "api.example.com", verdict="allowed", reason="rule", rule="repo#1"),
    event(4, "dns.google"),
    event(5, "static.crates.io"),
    event(6, "index.crates.io"),
    event(7, "other.example.org", repo="acme/other", job=9),
    event(8, "old.example.org", age=90 * 86400.0),
]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A ledger's folder: two days, one gzipped, and a file of checkpoints beside them."""
    folder = tmp_path / "ledger" / "h1"
    folder.mkdir(parents=True)
    lines = [msgspec.json.encode(one) + b"\n" for one in EVENTS]
    (folder / "2026-01-02.jsonl").write_bytes(b"".join(lines[:4]) + b'{"torn')
    (folder / "2026-01-01.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[4:])))
    (folder / "checkpoints.jsonl").write_bytes(b'{"size": 3}\n')
    return folder.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a policy, as the working directory; no organisation policy."""
    (tmp_path / "co" / ".ironcd").mkdir(parents=True)
    (tmp_path / "co" / ".ironcd" / "policy.yml").write_text(PRESENT)
    monkeypatch.chdir(tmp_path / "co")
    return tmp_path / "co" / ".ironcd" / "policy.yml"


@pytest.fixture
def no_org(run: Run, tmp_path: Path) -> Run:
    text = (tmp_path / "ironcd.toml").read_text()
    (tmp_path / "ironcd.toml").write_text(text.partition("[host]")[1] + text.partition("[host]")[2])
    return run


def test_the_suggestion_is_the_file_with_what_was_missing(
    no_org: Run, here: Path, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert no_org("suggest", "--repo", "acme/app", "--from", str(record)) == 0
    out, err = capsys.readouterr()
    assert out.startswith(PRESENT)
    added = out.removeprefix(PRESENT).splitlines()
    assert added == [
        '  - {preset: rust, comment: "seen 2 times in 1 job: index.crates.io, static.crates.io"}',
        "  - {host: new.example.org, comment: seen 2 times in 2 jobs}",
    ]
    assert "dns.google (1 times): dns.google is DNS over HTTPS" in err
    assert "other.example.org" not in out + err
    assert "old.example.org" not in out + err
    read_policy(out, source="p", presets=load_presets())
    assert here.read_text() == PRESENT


def test_the_diff_can_be_applied(no_org: Run, here: Path, record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert no_org("suggest", "--repo", "acme/app", "--from", str(record), "--diff") == 0
    diff = capsys.readouterr().out.splitlines()
    assert diff[:2] == ["--- a/.ironcd/policy.yml", "+++ b/.ironcd/policy.yml"]
    assert len([line for line in diff if line.startswith("+") and not line.startswith("+++")]) == 2
    assert not [line for line in diff[2:] if line.startswith("-")]
    here.unlink()
    assert no_org("suggest", "--repo", "acme/app", "--from", str(record), "--diff") == 0
    assert capsys.readouterr().out.startswith("--- /dev/null\n+++ b/.ironcd/policy.yml\n@@ -0,0 +1,")


def test_without_a_file_the_whole_policy_is_made(
    no_org: Run, here: Path, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here.unlink()
    assert no_org("suggest", "--repo", "acme/app", "--from", str(record), "--since", "400d", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    policy = read_policy(made["policy"], source="p", presets=load_presets())
    assert [e.host or e.preset.name for e in policy.allow or ()] == [  # type: ignore[union-attr]
        "rust", "api.example.com", "new.example.org", "old.example.org",
    ]  # fmt: skip
    assert made["left_out"][0]["target"] == "dns.google"
    assert no_org("suggest", "--repo", "acme/app", "--from", str(record), "--include-hazards") == 0
    assert "acknowledge: say here why this is needed" in capsys.readouterr().out


def test_what_the_organisation_would_not_have_is_said(
    run: Run, here: Path, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("suggest", "--repo", "acme/app", "--from", str(record)) == 0
    assert "new.example.org isn't within what the organisation allows" in capsys.readouterr().err


def test_replay_names_the_jobs(no_org: Run, here: Path, record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert no_org("replay", str(here), "--from", str(record), "--json") == 0
    assert json.loads(capsys.readouterr().out)["would_block"] == 0
    here.write_text("allow:\n  - {host: new.example.org}\n")
    assert no_org("replay", str(here), "--from", str(record), "--repo", "acme/app") == 1
    out = capsys.readouterr().out
    assert "api.example.com" in out
    assert "blocked then, and let through by this policy: new.example.org" in out
    assert "1 of 2 jobs" in out
    here.write_text("allow: [")
    assert no_org("replay", str(here), "--from", str(record)) == 2


def test_an_organisations_policy_is_replayed_for_all(run: Run, tmp_path: Path, record: Path) -> None:
    assert run("replay", str(tmp_path / "policy.yml"), "--scope", "org", "--from", str(record)) == 0
    (tmp_path / "strict.yml").write_text("mode: enforce\nallow: []\n")
    assert run("replay", str(tmp_path / "strict.yml"), "--scope", "org", "--from", str(record)) == 1


@pytest.mark.parametrize("content", [None, b"", b"nonsense\n"])
def test_a_record_that_is_none_is_refused(no_org: Run, here: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "e.jsonl").write_bytes(content)
    assert no_org("replay", str(here), "--from", str(tmp_path / "e.jsonl")) == 2


def served(monkeypatch: pytest.MonkeyPatch, answer: Callable[[httpx.Request], httpx.Response]) -> None:
    client = ApiClient("http://test", "t", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(ApiClient, "of", classmethod(lambda _cls, _settings: client))


def test_events_come_from_the_control_plane_page_by_page(
    no_org: Run, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        older = "cursor" in asked[-1]
        found = EVENTS[:1] if older else EVENTS[1:2]
        page = {"events": msgspec.to_builtins(found), "cursor": "" if older else "c1"}
        return httpx.Response(200, json=page)

    served(monkeypatch, answer)
    assert no_org("suggest", "--repo", "acme/app", "--since", "14d") == 0
    assert "seen 2 times in 2 jobs" in capsys.readouterr().out
    assert [params.get("cursor") for params in asked] == [None, "c1"]
    assert all(params["repo"] == "acme/app" for params in asked)
    assert float(asked[0]["since"]) == pytest.approx(time.time() - 14 * 86400, abs=60)
    assert loader.PAGE <= 100_000


def test_the_control_plane_being_away_is_status_1(no_org: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no", request=request)

    served(monkeypatch, answer)
    assert no_org("suggest", "--repo", "acme/app") == 1


def test_without_a_checkout_the_default_branchs_file_is_what_is_added_to(
    no_org: Run, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.unlink()
    file = {"repo": "acme/app", "at": 1.0, "text": PRESENT}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/policy"):
            return httpx.Response(200, json=file)
        mine = [msgspec.to_builtins(one) for one in EVENTS if one.who.repo == "acme/app"]
        return httpx.Response(200, json={"events": mine, "cursor": ""})

    served(monkeypatch, answer)
    assert no_org("suggest", "--repo", "acme/app", "--diff") == 0
    diff = capsys.readouterr().out.splitlines()
    assert diff[:2] == ["--- a/.ironcd/policy.yml", "+++ b/.ironcd/policy.yml"]
    assert not [line for line in diff[2:] if "api.example.com" in line and line.startswith(("+", "-"))]
    assert any("new.example.org" in line for line in diff if line.startswith("+"))
    file["text"] = ""
    assert no_org("suggest", "--repo", "acme/app", "--diff") == 0
    assert capsys.readouterr().out.startswith("--- /dev/null")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control plane that knows what ``acme/app`` would get now, what job 7 got, and what is refused."""
    from orchestrator.core.effective import effective_policy

    presets = load_presets()
    policy = effective_policy(None, read_policy(PRESENT, source=".ironcd/policy.yml", presets=presets), presets.builtin)
    got = {"at": 1_700_000_000.0, "digest": policy.digest, "policy": msgspec.to_builtins(policy)}
    file = {"branch": "trunk", "blob": "0123456789abcdef", "organisation": True}
    answers = {
        "repo=acme/app": {"repo": "acme/app", **got, **file},
        "repo=acme/none": {"repo": "acme/none", "at": 1.0, "reason": "there is no policy", "remedy": "Write one."},
        "job=7": {"repo": "acme/app", "job": 7, **got},
        "job=8": {"repo": "acme/app", "job": 8, "at": 1.0, "reason": "it was refused"},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        ((name, value),) = request.url.params.multi_items()
        found = answers.get(f"{name}={value}")
        return httpx.Response(200, json=found) if found else httpx.Response(404, json={"detail": "no"})

    served(monkeypatch, answer)


def test_explain_what_the_default_branch_says_now(run: Run, told: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "api.example.com", "--repo", "acme/app") == 0
    out = capsys.readouterr().out
    assert "repo#1 (.ironcd/policy.yml:5) allows api.example.com" in out
    assert ".ironcd/policy.yml of acme/app, branch trunk, blob 0123456789ab, under the organisation's policy" in out
    assert run("explain", "static.crates.io", "--repo", "acme/app", "--json") == 1
    made = json.loads(capsys.readouterr().out)
    assert (made["verdict"], made["reason"], made["presets"], made["to_allow"]) == (
        "blocked", "not_allowed", ["rust"], "{preset: rust}",
    )  # fmt: skip
    assert run("explain", "api.example.com", "--repo", "acme/none") == 2
    assert "a job of acme/none would be refused: there is no policy\n  remedy: Write one." in capsys.readouterr().err


def test_explain_what_a_job_got(run: Run, told: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "api.example.com", "--job", "7") == 0
    assert "the policy that job 7 of acme/app got (2023-11-14 22:13:20 UTC, sha256:" in capsys.readouterr().out
    assert run("explain", "api.example.com", "--job", "8") == 2
    assert "job 8 got no policy: it was refused" in capsys.readouterr().err
    assert run("explain", "api.example.com", "--job", "9") == 2
    assert run("explain", "api.example.com", "--job", "7", "--repo", "acme/app") == 2
    assert "bad-option" in capsys.readouterr().err


def test_explain_a_file_and_the_organisation(run: Run, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "api.example.com", "--file", str(here)) == 0
    capsys.readouterr()
    assert run("explain", "x.cdn.example.com", "--file", str(here)) == 1
    out = capsys.readouterr().out
    assert "org#3" in out
    assert "leaves it out" in out
    assert run("explain", "bad.cdn.example.com") == 1
    assert "org#4 (policy.yml:11) denies" in capsys.readouterr().out
    here.write_text("allow: [{host: elsewhere.example.org}]\n")
    assert run("explain", "elsewhere.example.org", "--file", str(here)) == 2
    assert run("explain", "*.example.com") == 2
    assert run("explain", "a.example.com", "--repo", "a/b", "--file", "x") == 2


def test_import(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = (
        "{uses: step-security/harden-runner@v2, with: {egress-policy: block, allowed-endpoints: 'a.example.org:443'}}"
    )
    (tmp_path / "ci.yml").write_text(f"jobs: {{a: {{steps: [{step}]}}}}")
    (tmp_path / "no.yml").write_text("jobs: {a: {steps: [{uses: actions/checkout@v4}]}}")
    assert run("import", "harden-runner", str(tmp_path / "ci.yml"), str(tmp_path / "no.yml")) == 0
    out = capsys.readouterr().out
    read = read_policy(out, source="p", presets=load_presets())
    assert (read.mode, [entry.host for entry in read.allow or ()]) == ("enforce", ["a.example.org"])
    assert run("import", "harden-runner", str(tmp_path / "no.yml")) == 1
    assert run("import", "harden-runner", str(tmp_path / "none.yml")) == 2
    assert run("import", "harden-runner", str(tmp_path / "ci.yml"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["entries"] == [{"host": "a.example.org"}]
