"""Our parser beside OpenSSL's server (the standard library's): it must never read another name than that one would."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.egress.differential import Server, bases, one, same
from tests.unit.egress.hellos import GREASE, PADDING, SNI, USUAL, Extension, entry, message, openssl, records, sni, u16

# The standard library can't raise out of OpenSSL's callback where a name isn't ASCII; that is its way of saying so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SAMPLE = 2500


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("differential"))


def test_on_a_sample_of_mutated_hellos(server: Server) -> None:
    rng = random.Random(20260131)
    msgs = bases()
    results: dict[str, int] = {}
    for number in range(SAMPLE):
        outcome = same(server, one(number, msgs, rng))
        results[outcome] = results.get(outcome, 0) + 1
    assert results["same"] > SAMPLE / 10, results
    assert results["refused"] > SAMPLE / 10, results


_names = st.binary(min_size=0, max_size=30) | st.sampled_from(
    [b"allowed.example", b"ALLOWED.example.", b"evil.example", b"allowed.example\x00", b"127.0.0.1", b"a" * 64]
)
_entries = st.lists(st.tuples(st.integers(0, 2), _names), max_size=3)
_extensions = st.one_of(
    st.builds(lambda items: (SNI, u16(b"".join(entry(n, k) for k, n in items))), _entries),
    st.sampled_from(USUAL),
    st.tuples(st.sampled_from([GREASE, 0x2A2A, 5, 23, 0xFF01, PADDING]), st.just(b"\x00") | st.binary(max_size=8)),
)


@settings(max_examples=300, deadline=None)
@given(
    extensions=st.lists(_extensions, max_size=8),
    session=st.binary(max_size=32),
    cuts=st.lists(st.integers(1, 400), max_size=5),
    methods=st.sampled_from([b"\x00", b"\x01\x00", b"\x00\x01"]),
)
def test_on_generated_hellos(
    server: Server, extensions: list[Extension], session: bytes, cuts: list[int], methods: bytes
) -> None:
    msg = message(*USUAL, *extensions, session=session, methods=methods)
    same(server, records(msg, [cut for cut in cuts if cut < len(msg)]))


def test_the_usual_hello_is_read_by_both(server: Server) -> None:
    assert same(server, records(message(sni(b"Allowed.Example"), *USUAL))) == "same"
    assert server.name(openssl(None)) is None
