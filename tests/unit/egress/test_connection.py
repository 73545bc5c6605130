"""The decision on a connection, as a transcript: what came in, what the gateway is told to do."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from orchestrator.core.link import Limits
from orchestrator.core.policy import Private, Rule, compile_policy
from orchestrator.egress.connection import Block, Command, Connection, Dial, Fail, Read, Resolve
from orchestrator.egress.links import LinkState
from tests.unit.egress.conftest import make_policy
from tests.unit.egress.hellos import ECH, hello, openssl

Make = Callable[..., LinkState]

NAME = b"allowed.example"
SITE, ATTACKER, OWN = "203.0.113.10", "198.51.100.66", "203.0.113.1"
RANGE = Rule(id="test#range", cidr="203.0.113.40/32", ports=(22, 443))


def tls(state: LinkState, address: str = SITE, port: int = 443) -> Connection:
    return Connection(state, "tls", address, port, {OWN})


def reason(command: Command) -> str:
    assert isinstance(command, Block), command
    return command.decision.reason


def change(state: LinkState, *hosts: str, **fields: object) -> None:
    policy = make_policy(*hosts, **fields)
    state.link = msgspec.structs.replace(state.link, policy=policy)
    state.policy = compile_policy(policy)


def test_an_allowed_name_is_resolved_and_then_dialled_with_all_that_came(state: Make) -> None:
    connection = tls(state("allowed.example"))
    data = hello(NAME)
    assert connection.begin() == Read()
    assert connection.received(data[:50]) == Read()
    assert connection.received(data[50:] + b"early") == Resolve("allowed.example")
    assert connection.answered([SITE]) == Dial((SITE,), 443, data + b"early")
    assert (connection.decision.verdict, connection.decision.rule, connection.flags) == ("allowed", "test#1", ())


def test_a_dialled_address_that_is_not_the_names_is_flagged_and_not_used(state: Make) -> None:
    connection = tls(state("allowed.example"), ATTACKER)
    connection.received(hello(NAME))
    assert connection.answered([SITE]) == Dial((SITE,), 443, hello(NAME))
    assert connection.flags == ("dst_mismatch",)


def test_the_address_that_stands_for_the_name_is_no_mismatch(state: Make) -> None:
    link = state("allowed.example", "other.example")
    mine, others = link.fake_names.address_of("allowed.example"), link.fake_names.address_of("other.example")
    for address, flags in ((mine, ()), (others, ("dst_mismatch",)), ("198.18.0.77", ("dst_mismatch",))):
        connection = tls(link, str(address))
        connection.received(hello(NAME))
        assert isinstance(connection.answered([SITE]), Dial)
        assert connection.flags == flags


def test_a_name_that_is_not_allowed_is_blocked_before_it_is_resolved(state: Make) -> None:
    assert reason(tls(state("allowed.example")).received(hello(b"evil.example"))) == "not_allowed"


def test_in_warn_it_is_resolved_and_marked(state: Make) -> None:
    connection = tls(state("allowed.example", mode="warn"))
    assert connection.received(hello(b"other.example")) == Resolve("other.example")
    assert isinstance(connection.answered([SITE]), Dial)
    assert (connection.decision.verdict, connection.decision.would_block) == ("warn", True)


@pytest.mark.parametrize("mode", ["enforce", "warn"])
@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (["127.0.0.1"], "floor_loopback"),
        (["169.254.169.254"], "floor_metadata"),
        ([SITE, "10.0.0.5"], "floor_private"),
        (["100.64.0.1"], "floor_private"),
        (["::ffff:127.0.0.1"], "floor_loopback"),
        (["64:ff9b::a9fe:a9fe"], "floor_metadata"),
        (["2002:7f00:1::"], "floor_loopback"),
        ([OWN], "floor_own_address"),
        (["198.18.0.1"], "floor_benchmark"),
    ],
)
def test_every_address_of_the_answer_must_be_above_the_floor(
    state: Make, mode: str, answers: list[str], why: str
) -> None:
    connection = tls(state("allowed.example", mode=mode))
    connection.received(hello(NAME))
    assert reason(connection.answered(answers)) == why
    assert connection.decision.rule == "test#1"


def test_a_private_range_with_a_reason_is_lifted(state: Make) -> None:
    connection = tls(state("allowed.example", private=(Private("10.0.0.0/24", "the mirror"),)))
    connection.received(hello(NAME))
    assert isinstance(connection.answered(["10.0.0.5"]), Dial)
    assert reason(connection.answered(["10.0.1.5"])) == "floor_private"


@pytest.mark.parametrize("mode", ["enforce", "warn"])
@pytest.mark.parametrize(
    ("address", "why"),
    [("169.254.169.254", "floor_metadata"), ("127.0.0.1", "floor_loopback"), (OWN, "floor_own_address")],
)
def test_dialling_the_floor_is_blocked_whatever_the_name(state: Make, mode: str, address: str, why: str) -> None:
    assert reason(tls(state("allowed.example", mode=mode), address).received(hello(NAME))) == why


@pytest.mark.parametrize("mode", ["enforce", "warn"])
def test_malformed_and_nameless_hellos_are_blocked_in_every_mode(state: Make, mode: str) -> None:
    link = state("allowed.example", mode=mode)
    assert reason(tls(link).received(b"SSH-2.0-x\r\n")) == "not_tls"
    assert reason(tls(link).received(hello(b"allowed.example\n"))) == "name_characters"
    assert reason(tls(link).received(hello(NAME, (ECH, b"")))) == "ech"
    assert reason(tls(link).received(openssl(None))) == "missing_sni"
    assert reason(tls(link).received(b"")) == "no_hello"
    assert reason(tls(link).timed_out()) == "hello_timeout"
    cut = tls(link)
    cut.received(hello(NAME)[:9])
    assert reason(cut.received(b"")) == "hello_cut"


def test_without_a_name_a_range_is_dialled_as_it_was_asked_for(state: Make) -> None:
    link = state(rules=[RANGE])
    connection = tls(link, "203.0.113.40")
    command = connection.received(data := openssl(None))
    assert command == Dial(("203.0.113.40",), 443, data)
    assert connection.decision.rule == "test#range"
    assert reason(tls(link, ATTACKER).received(openssl(None))) == "missing_sni"


def test_a_tcp_connection_to_a_range_needs_no_hello(state: Make) -> None:
    link = state(rules=[RANGE])
    assert Connection(link, "tcp", "203.0.113.40", 22, ()).begin() == Dial(("203.0.113.40",), 22, b"")
    assert reason(Connection(link, "tcp", "203.0.113.41", 22, ()).begin()) == "not_allowed"
    assert reason(Connection(link, "tcp", "203.0.113.40", 23, ()).begin()) == "not_allowed"
    assert reason(Connection(link, "tcp", "203.0.113.40", 22, {"203.0.113.40"}).begin()) == "floor_own_address"


def test_no_answer_is_a_failure_of_an_allowed_connection(state: Make) -> None:
    connection = tls(state("allowed.example"))
    connection.received(hello(NAME))
    assert connection.answered([]) == Fail("dns_failed")
    assert connection.decision.verdict == "allowed"


def test_a_policy_that_changes_while_we_resolve_counts(state: Make) -> None:
    link = state("allowed.example")
    connection = tls(link)
    connection.received(hello(NAME))
    change(link, "other.example")
    assert reason(connection.answered([SITE])) == "not_allowed"


def test_an_open_connection_is_judged_by_the_policy_of_the_day(state: Make) -> None:
    link = state("allowed.example", mode="warn")
    allowed, warned = tls(link), tls(link)
    allowed.received(hello(NAME))
    warned.received(hello(b"other.example"))
    change(link, "allowed.example", mode="enforce")
    assert allowed.judge_live(SITE).verdict == "allowed"
    assert warned.judge_live(SITE).reason == "not_allowed"
    change(link, "allowed.example", rules=[Rule(id="org#1", action="deny", cidr="203.0.113.0/24")])
    assert allowed.judge_live("10.0.0.1").reason == "floor_private"


def test_ech_is_let_through_by_the_policy_only(state: Make) -> None:
    link = state("allowed.example", allow_ech=True)
    connection = tls(link)
    assert connection.received(hello(NAME, (ECH, b"\0" * 9))) == Resolve("allowed.example")
    assert connection.flags == ("ech",)
    change(link, "allowed.example")
    assert connection.judge_live(SITE).reason == "ech"


def test_names_under_a_wildcard_run_out_for_hellos_too(state: Make) -> None:
    link = state("*.allowed.example", limits=Limits(names_per_wildcard=2))
    outcomes = [tls(link).received(hello(f"n{n}.allowed.example".encode())) for n in (1, 2, 3, 1)]
    assert [isinstance(outcome, Resolve) for outcome in outcomes] == [True, True, False, True]
    assert reason(outcomes[2]) == "name_budget"


def test_what_a_vm_may_have_open(state: Make) -> None:
    link = state(limits=Limits(connections=2, half_open=1, new_per_second=3))
    assert [link.refusal(0.0) for _ in range(4)] == ["", "", "", "limit_rate"]
    assert link.refusal(1.0) == ""
    link.half_open = 1
    assert link.refusal(2.0) == "limit_half_open"
    link.flows = {1, 2}  # type: ignore[arg-type]
    assert link.refusal(3.0) == "limit_connections"
