"""What comes from elsewhere can't act on the terminal, nor on a reader of JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.surface.cli.terminal import ascii_json, clean, print_json_line, print_table, seconds, size


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\r\tc", "a\\x0ab\\x0d\\x09c"),
        ("\x9b2J", "\\x9b2J"),
        ("gnp\u202eexe", "gnp\\u202eexe"),
        ("a\u200bb", "a\\u200bb"),
        ("grüße 例", "grüße 例"),
        ("\U000e0041", "\\U000e0041"),
        ("\u2028", "\\u2028"),
    ],
)
def test_clean(given_text, shown):
    assert clean(given_text) == shown


@given(st.text())
def test_clean_leaves_only_what_can_be_printed_or_a_space(text):
    assert all(char.isprintable() or char.isspace() for char in clean(text))
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in clean(text))


@given(st.dictionaries(st.text(), st.text()))
def test_json_is_ascii_and_means_the_same(value):
    encoded = ascii_json(json.dumps(value, ensure_ascii=False))
    assert encoded.isascii()
    assert json.loads(encoded) == value


def test_a_json_line_is_one_line(capsys):
    print_json_line({"host": "a\nb\x85\u2028\u202e"})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.isascii()
    assert json.loads(out) == {"host": "a\nb\x85\u2028\u202e"}


def test_a_table_shows_markup_and_escapes_as_they_are(capsys):
    print_table(("name", "#n"), [("[red]x[/red]\x1b[2J", 3)])
    out = capsys.readouterr().out
    assert "[red]x[/red]\\x1b[2J" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("value", "text"), [(0.26, "0.3 s"), (99.0, "99.0 s"), (185.0, "3 min 05 s"), (7800.0, "2 h 10 min")]
)
def test_seconds(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 40, "5120.0 GiB")]
)
def test_size(value, text):
    assert size(value) == text
