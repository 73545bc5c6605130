"""Events in the forms that other people's tools read: JSON lines, CSV, OCSF's Network Activity (class 4001), ArcSight's CEF.

Pure functions of one event.  Names, reasons and rules come from virtual machines, workflows and policies, so each form is
escaped for its reader: a cell that a spreadsheet would run as a formula is written as text, and a value can't end a CEF field
or line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from orchestrator.core.flow import Event
from orchestrator.core.names import names_of

Format = Literal["jsonl", "csv", "ocsf", "cef"]

OCSF_VERSION = "1.3.0"
_CLASS = 4001
_OTHER = 99
_ACTIVITIES = {0: "Unknown", 1: "Open", 2: "Close", 5: "Refuse", 6: "Traffic"}
_PROTOCOLS = {"tls": (6, "tcp"), "tcp": (6, "tcp"), "udp": (17, "udp"), "dns": (17, "udp"), "icmp": (1, "icmp")}
_CSV_COLUMNS = (
    ("time", "gateway", "seq", "event", "verdict", "reason", "rule", "mode", "would_block", "host", "host_source")
    + ("port", "protocol", "orig_dst", "resolved", "bytes_up", "bytes_down", "duration_ms", "close_reason", "count")
    + ("org", "repo", "workflow", "run_id", "attempt", "job", "job_id", "runner", "vm", "flags", "policy", "conn")
)
_FORMULA = re.compile(r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def header(form: Format) -> str:
    """What stands before the first event: a line, or nothing."""
    return _row(_CSV_COLUMNS) if form == "csv" else ""


def write(form: Format, event: Event, *, version: str) -> str:
    """``event`` as one line with its end.  ``version`` is ours, for the forms that name the product."""
    if form == "jsonl":
        return msgspec.json.encode(event).decode() + "\n"
    if form == "csv":
        return _row(_cells(event))
    if form == "ocsf":
        return msgspec.json.encode(ocsf(event, version=version)).decode() + "\n"
    return cef(event, version=version) + "\n"


def _cells(event: Event) -> Iterator[object]:
    who = event.who
    given: dict[str, object] = {
        "time": datetime.fromtimestamp(event.ts, UTC).isoformat(timespec="milliseconds"),
        "vm": _vm(event),
        "flags": " ".join(event.flags),
    }
    for column in _CSV_COLUMNS:
        value = given[column] if column in given else getattr(event, column, getattr(who, column, ""))
        yield "" if value == 0 and column in {"port", "run_id", "attempt", "job_id"} else value


def _row(cells: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow([_cell(cell) for cell in cells])
    return text.getvalue()


def _cell(value: object) -> str:
    """A leading apostrophe keeps a spreadsheet from running what looks like a formula."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text.replace("\x00", "")
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def ocsf(event: Event, *, version: str) -> dict[str, Any]:
    """OCSF Network Activity with the profiles host and security control.  What has no place there stands in ``unmapped``."""
    activity = _activity(event)
    named = _ACTIVITIES.get(activity, event.event.capitalize())
    denied = event.verdict == "blocked"
    disposition = {"allowed": (1, "Allowed"), "blocked": (2, "Blocked"), "warn": (19, "Alert")}[event.verdict]
    number, protocol = _PROTOCOLS.get(event.protocol, (-1, event.protocol))
    return _filled(
        {
            "metadata": {
                "version": OCSF_VERSION,
                "product": {
                    "name": "IronCD",
                    "vendor_name": "IronCD",
                    "version": version,
                    "feature": {"name": "egress"},
                },
                "profiles": ["host", "security_control"],
                "uid": f"{event.gateway}/{event.seq}",
                "sequence": event.seq,
                "event_code": event.event,
                "log_name": "egress",
            },
            "category_uid": 4,
            "category_name": "Network Activity",
            "class_uid": _CLASS,
            "class_name": "Network Activity",
            "activity_id": activity,
            "activity_name": named,
            "type_uid": _CLASS * 100 + activity,
            "type_name": f"Network Activity: {named}",
            "time": round(event.ts * 1000),
            "severity_id": 3 if denied else 2 if event.verdict == "warn" else 1,
            "severity": "Medium" if denied else "Low" if event.verdict == "warn" else "Informational",
            "status_id": 2 if denied else 1,
            "status": "Failure" if denied else "Success",
            "status_code": event.reason,
            "status_detail": event.close_reason,
            "action_id": 2 if denied else 1,
            "action": "Denied" if denied else "Allowed",
            "disposition_id": disposition[0],
            "disposition": disposition[1],
            "count": event.count,
            "duration": event.duration_ms,
            "message": _message(event),
            "connection_info": {
                "uid": event.conn,
                "direction_id": 2,
                "direction": "Outbound",
                "protocol_num": number,
                "protocol_name": protocol,
            },
            "src_endpoint": _source(event),
            "dst_endpoint": _destination(event),
            "traffic": _traffic(event),
            "firewall_rule": {"uid": event.rule},
            "authorizations": _authorizations(event),
            "device": {"hostname": event.gateway, "name": event.gateway, "type_id": 9, "type": "Firewall"},
            "unmapped": _unmapped(event),
        }
    )


def _source(event: Event) -> dict[str, Any]:
    """The machine; the host itself for what no machine did.  The schema wants a name, an id or an address."""
    if event.who.runner:
        return {"name": _vm(event), "uid": event.who.runner, "type_id": 8, "type": "Virtual"}
    return {"hostname": event.gateway, "type_id": 9, "type": "Firewall"}


def _authorizations(event: Event) -> list[dict[str, Any]]:
    """Where the schema has a place for the policy that decided."""
    policy = {"uid": event.policy, "is_applied": True}
    return [{"decision": event.verdict, "policy": policy}] if event.policy else []


def _destination(event: Event) -> dict[str, Any]:
    found = {"hostname": event.host, "ip": event.resolved or event.orig_dst}
    return {**(found if any(found.values()) else {"name": "unknown"}), "port": event.port}


def _activity(event: Event) -> int:
    if event.event in {"lost", "mark", "alert"}:
        return _OTHER
    if event.verdict == "blocked":
        return 5
    return {"open": 1, "close": 2, "progress": 6, "dns": 5, "drop": 5}.get(event.event, 0)


def _traffic(event: Event) -> dict[str, int]:
    if event.event not in {"progress", "close"}:
        return {}
    return {
        "bytes_out": event.bytes_up,
        "bytes_in": event.bytes_down,
        "bytes": event.bytes_up + event.bytes_down,
    }


def _unmapped(event: Event) -> dict[str, Any]:
    who = msgspec.to_builtins(event.who)
    rest = {"original_destination": event.orig_dst if event.resolved else "", "name_from": event.host_source}
    return {
        **{key: value for key, value in who.items() if key != "runner"},
        **rest,
        "mode": event.mode,
        "would_block": event.would_block,
        "flags": list(event.flags),
        "policy_generation": event.generation,
        "tls": event.tls,
        "previous": event.prev,
    }


def _filled(value: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty or nought; of traffic, nought bytes say something."""
    filled = {
        key: _filled(item) if isinstance(item, dict) and key != "traffic" else item for key, item in value.items()
    }
    return {key: item for key, item in filled.items() if item}


def cef(event: Event, *, version: str) -> str:
    """CEF, version 0, without a syslog header: ``CEF:0|IronCD|IronCD|version|kind|name|severity|extension``."""
    severity = {"allowed": 1, "warn": 4, "blocked": 6}[event.verdict]
    head = ("IronCD", "IronCD", version, f"{event.event}:{event.reason}", _message(event), str(severity))
    fields: dict[str, object] = {
        "rt": round(event.ts * 1000),
        "externalId": f"{event.gateway}/{event.seq}",
        "act": event.verdict,
        "outcome": "failure" if event.verdict == "blocked" else "success",
        "reason": event.reason,
        "dvchost": event.gateway,
        "shost": _vm(event),
        "dhost": event.host,
        "dst": event.resolved or event.orig_dst,
        "dpt": event.port,
        "proto": _PROTOCOLS.get(event.protocol, (0, event.protocol))[1].upper(),
        "app": event.protocol,
        "out": event.bytes_up,
        "in": event.bytes_down,
        "cnt": event.count,
        "deviceDirection": 1,
        **_custom(event),
    }
    extension = " ".join(f"{key}={_extension(str(value))}" for key, value in fields.items() if value not in ("", 0))
    return f"CEF:0|{'|'.join(_header(part) for part in head)}|{extension}"


def _custom(event: Event) -> dict[str, object]:
    """CEF's six custom strings, each with its label."""
    who = event.who
    given = {
        "repository": who.repo,
        "workflow": who.workflow,
        "job": who.job,
        "rule": event.rule,
        "policy": event.policy,
        "flags": " ".join(event.flags),
    }
    fields: dict[str, object] = {}
    for number, (label, value) in enumerate(given.items(), start=1):
        if value:
            fields |= {f"cs{number}Label": label, f"cs{number}": value}
    if who.job_id:
        fields |= {"cn1Label": "job_id", "cn1": who.job_id}
    return fields


def _message(event: Event) -> str:
    target = event.host or event.orig_dst or event.protocol
    if event.event in {"lost", "mark"}:
        return f"{event.event}: {event.reason}"
    return f"{event.event} {target}{f':{event.port}' if event.port else ''} {event.verdict}: {event.reason}"


def _header(text: str) -> str:
    return _flat(text).replace("\\", "\\\\").replace("|", "\\|")


def _extension(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("=", "\\=")
    return _visible(escaped.replace("\r", "\\r").replace("\n", "\\n"))


def _flat(text: str) -> str:
    return _visible(re.sub(r"[\r\n]+", " ", text))


def _visible(text: str) -> str:
    r"""Line ends of every kind, and what else controls a terminal or a parser, as ``\\uXXXX``."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: f"\\\\u{ord(found[0]):04x}", text)


def _vm(event: Event) -> str:
    try:
        return names_of(event.who.runner).domain
    except ValueError:
        return ""
