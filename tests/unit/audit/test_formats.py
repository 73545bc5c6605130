"""Forms that other tools read: right in content, and nothing in an event can act on its reader."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from orchestrator.audit.formats import cef, header, ocsf, write
from orchestrator.core.flow import Event, EventKind, Identity, Protocol, Verdict

from .conftest import DAY, event

OCSF = Draft202012Validator(
    msgspec.json.decode((Path(__file__).parents[2] / "data" / "ocsf-network-activity.json").read_bytes())
)
ULID = "01JF0000000000000000000000"
WHO = Identity(ULID, org="acme", repo="acme/app", workflow="ci", run_id=5, attempt=1, job="build", job_id=11)
OPEN = event(
    7,
    who=WHO,
    conn="c1",
    host_source="sni",
    resolved="203.0.113.10",
    orig_dst="198.18.0.1",
    rule="org#1",
    mode="enforce",
    policy="sha256:0",
)
CLOSE = msgspec.structs.replace(OPEN, event="close", bytes_up=10, bytes_down=0, duration_ms=1500, close_reason="client")
BLOCKED = event(8, who=WHO, verdict="blocked", reason="not_allowed", host="evil.example", flags=("ech",))


def test_jsonl_is_the_ledgers_own_line() -> None:
    assert msgspec.json.decode(write("jsonl", CLOSE, version="1"), type=Event) == CLOSE


def test_ocsf_open() -> None:
    found = ocsf(OPEN, version="1.2.3")
    assert {key: found[key] for key in ("category_uid", "class_uid", "activity_id", "type_uid", "time", "severity_id")} == {
        "category_uid": 4, "class_uid": 4001, "activity_id": 1, "type_uid": 400101,
        "time": (DAY + 7) * 1000, "severity_id": 1,
    }  # fmt: skip
    assert found["metadata"]["product"]["version"] == "1.2.3"
    assert found["metadata"]["uid"] == "h1/7"
    assert found["dst_endpoint"] == {"hostname": "allowed.example", "ip": "203.0.113.10", "port": 443}
    assert found["src_endpoint"]["name"] == f"ironcd-{ULID.lower()}"
    assert found["connection_info"] == {
        "uid": "c1", "direction_id": 2, "direction": "Outbound", "protocol_num": 6, "protocol_name": "tcp"
    }  # fmt: skip
    assert (found["action_id"], found["disposition_id"], found["status_id"]) == (1, 1, 1)
    assert found["unmapped"]["repo"] == "acme/app"
    assert found["authorizations"] == [{"decision": "allowed", "policy": {"uid": "sha256:0", "is_applied": True}}]
    assert "traffic" not in found


def test_ocsf_close_keeps_a_zero() -> None:
    found = ocsf(CLOSE, version="1")
    assert found["activity_id"] == 2
    assert found["traffic"] == {"bytes_out": 10, "bytes_in": 0, "bytes": 10}
    assert found["duration"] == 1500


@pytest.mark.parametrize(
    ("changes", "activity", "action", "disposition"),
    [
        ({}, 5, 2, 2),
        ({"event": "dns", "protocol": "dns"}, 5, 2, 2),
        ({"event": "drop", "protocol": "icmp"}, 5, 2, 2),
        ({"verdict": "warn", "would_block": True}, 1, 1, 19),
        ({"event": "progress", "verdict": "allowed"}, 6, 1, 1),
        ({"event": "lost"}, 99, 2, 2),
        ({"event": "alert", "verdict": "allowed"}, 99, 1, 1),
        ({"event": "mark", "verdict": "allowed"}, 99, 1, 1),
    ],
)
def test_ocsf_verdicts(changes: dict[str, Any], activity: int, action: int, disposition: int) -> None:
    found = ocsf(msgspec.structs.replace(BLOCKED, **changes), version="1")
    assert (found["activity_id"], found["action_id"], found["disposition_id"]) == (activity, action, disposition)
    assert found["type_uid"] == 400100 + activity


_TEXTS = st.sampled_from(["", "x", "a.example"])
_ADDRESSES = st.sampled_from(["", "203.0.113.7", "198.18.0.1"])


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from(get_args(EventKind)),
            "verdict": st.sampled_from(get_args(Verdict)),
            "protocol": st.sampled_from(get_args(Protocol)),
            "who": st.sampled_from([WHO, Identity(""), Identity(ULID), Identity("no-ulid")]),
            "ts": st.floats(1, 4e9),
            "port": st.integers(0, 65535),
            "bytes_up": st.integers(0, 1 << 50),
            "duration_ms": st.integers(0, 1 << 40),
            "count": st.integers(1, 1 << 30),
            "flags": st.sampled_from([(), ("ech",), ("suppressed", "expected")]),
            "tls": st.sampled_from([{}, {"alpn": "h2", "hello_bytes": 517}]),
            **dict.fromkeys(("host", "rule", "policy", "conn", "close_reason", "mode"), _TEXTS),
            **dict.fromkeys(("orig_dst", "resolved"), _ADDRESSES),
        }
    )
)
def test_whatever_is_on_record_is_valid_ocsf(changes: dict[str, Any]) -> None:
    """By the framework's own schema; nothing of a name that it doesn't know, and nothing left out that it wants."""
    made = msgspec.to_builtins(ocsf(msgspec.structs.replace(OPEN, **changes), version="1"))
    assert [f"{list(error.path)}: {error.message}" for error in OCSF.iter_errors(made)] == []


def test_the_schema_finds_what_is_wrong() -> None:
    made = ocsf(OPEN, version="1")
    assert list(OCSF.iter_errors({**made, "activity_id": 77}))
    assert list(OCSF.iter_errors({**made, "nonsense": 1}))
    assert list(OCSF.iter_errors({key: value for key, value in made.items() if key != "dst_endpoint"}))


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(header("csv") + write("csv", CLOSE, version="1"))))
    (row,) = rows
    assert (row["time"], row["host"], row["bytes_up"], row["bytes_down"], row["vm"]) == (
        "2023-11-14T22:13:27.000+00:00", "allowed.example", "10", "0", f"ironcd-{ULID.lower()}",
    )  # fmt: skip
    assert row["would_block"] == "false"


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\n=1", " =1", "\uff1d1", "=HYPERLINK(1)"]
)
def test_no_cell_is_a_formula(text: str) -> None:
    (row,) = csv.DictReader(
        io.StringIO(header("csv") + write("csv", msgspec.structs.replace(BLOCKED, host=text), version="1"))
    )
    assert row["host"] == f"'{text}"


@given(st.text(max_size=30))
def test_csv_is_read_back_as_one_row(text: str) -> None:
    made = header("csv") + write("csv", msgspec.structs.replace(BLOCKED, host=text, reason=text), version="1")
    rows = list(csv.reader(io.StringIO(made, newline="")))
    assert len(rows) == 2
    assert len(rows[0]) == len(rows[1])
    assert not any(re.match(r"[=+@-]", cell) and not re.fullmatch(r"-?\d+(\.\d+)?", cell) for cell in rows[1])


def test_cef() -> None:
    line = cef(BLOCKED, version="1.0")
    head, _, extension = line.partition("|6|")
    assert head == "CEF:0|IronCD|IronCD|1.0|open:not_allowed|open evil.example:443 blocked: not_allowed"
    fields = dict(re.findall(r"(\w+)=((?:[^=\\]|\\.)*?)(?= \w+=|$)", extension))
    assert fields["dhost"] == "evil.example"
    assert fields["act"] == "blocked"
    assert (fields["cs1Label"], fields["cs1"]) == ("repository", "acme/app")
    assert (fields["cs6Label"], fields["cs6"]) == ("flags", "ech")
    assert fields["cn1"] == "11"


def test_cef_escapes() -> None:
    nasty = msgspec.structs.replace(BLOCKED, host="a|b=c\\d\ne\r act=allowed", reason="x|y\nCEF:0|z")
    line = cef(nasty, version="1")
    assert "\n" not in line
    assert "\r" not in line
    assert r"x\|y CEF:0\|z" in line
    assert r"dhost=a|b\=c\\d\ne\r act\=allowed dpt=" in line


@given(st.text(max_size=40), st.text(max_size=40))
def test_cef_is_one_line_with_seven_pipes(host: str, reason: str) -> None:
    line = cef(msgspec.structs.replace(BLOCKED, host=host, reason=reason), version="1")
    assert len(line.splitlines()) == 1
    head = re.match(r"CEF:0\|(?:(?:[^|\\]|\\.)*\|){6}", line)
    assert head is not None
    assert line[head.end() :].startswith("rt=")


def test_an_unnamed_vm() -> None:
    assert "src_endpoint" in ocsf(event(1), version="1")
    assert "shost" not in cef(event(1), version="1")
