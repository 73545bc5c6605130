from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.blocked import DESCRIPTION_LIMIT, Blocked, blocked_targets, description, report
from orchestrator.core.flow import Event, Identity


def event(**changes: Any) -> Event:
    fields: dict[str, Any] = {
        "event": "dns", "ts": 1.0, "seq": 1, "gateway": "h", "who": Identity("R", repo="acme/app", job_id=3),
        "protocol": "dns", "verdict": "blocked", "reason": "not_allowed", "host": "evil.example",
    }  # fmt: skip
    return Event(**{**fields, **changes})


def safe(_host: str) -> bool:
    return False


def test_a_name_is_one_target_with_its_line() -> None:
    events = [event(), event(count=3), event(event="open", protocol="tls", port=443)]
    assert blocked_targets(events, safe) == (Blocked("evil.example", "not_allowed", 5, "{host: evil.example}"),)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"event": "drop", "protocol": "tcp", "host": "", "orig_dst": "203.0.113.7", "port": 22, "reason": "ssh"},
         "{cidr: 203.0.113.7/32, ports: [22]}"),
        ({"event": "drop", "protocol": "tcp", "host": "", "orig_dst": "203.0.113.7", "port": 80, "reason": "http"}, ""),
        ({"event": "drop", "protocol": "udp", "host": "", "orig_dst": "203.0.113.7", "port": 443, "reason": "quic"}, ""),
        ({"event": "open", "protocol": "tls", "port": 443, "reason": "denied"}, ""),
        ({"event": "open", "protocol": "tls", "port": 443, "reason": "metadata"}, ""),
    ],
)  # fmt: skip
def test_a_line_only_for_what_a_policy_opens(changes: dict[str, Any], line: str) -> None:
    (found,) = blocked_targets([event(**changes)], safe)
    assert found.line == line


def test_no_line_for_a_dangerous_host_and_nothing_of_what_is_expected() -> None:
    assert blocked_targets([event()], lambda host: host == "evil.example")[0].line == ""
    assert blocked_targets([event(flags=("expected",))], safe) == ()


def test_what_only_warn_let_through_comes_last_and_says_so() -> None:
    warned = event(host="warned.example", verdict="warn", ts=0.5)
    evil, would = blocked_targets([warned, event()], safe)
    assert (evil.target, evil.passed, would.target, would.passed) == ("evil.example", False, "warned.example", True)
    assert would.line == "{host: warned.example}"
    assert description([would]).startswith("would be blocked in enforce: warned.example; if meant, add")
    assert "| `warned.example` | `not_allowed`, let through by `mode: warn` | 1 |" in report(
        [evil, would], "policy.yml"
    )


def test_descriptions_are_short() -> None:
    one = Blocked("evil.example", "not_allowed", 1, "{host: evil.example}")
    assert description([one]) == "blocked: evil.example; if meant, add to allow: - {host: evil.example}"
    assert description([one, one, one]).startswith("blocked: evil.example and 2 more; if meant")
    long = "x" * 60 + "." + "y" * 60 + ".example"
    for line in ("", "{host: " + long + "}"):
        assert len(description([Blocked(long * 2, "not_allowed", 1, line)])) <= DESCRIPTION_LIMIT
    assert description([Blocked(long, "not_allowed", 1, "{host: " + long + "}")]) == f"blocked: {long}"


def test_a_report_lists_all_and_nothing_in_it_is_markup() -> None:
    nasty = Blocked("`|<img src=x>\n# evil", "not_allowed", 2)
    text = report([Blocked("evil.example", "not_allowed", 1, "{host: evil.example}"), nasty], "policy.yml")
    assert "| `evil.example` | `not_allowed` | 1 |" in text
    assert "| `'\\|<img src=x>?# evil` | `not_allowed` | 2 |" in text
    assert text.endswith("```yaml\nallow:\n  - {host: evil.example}\n```")
    assert "5 more are on record" in report([nasty] * 105, "policy.yml")
