"""YAML from strangers: what is refused, where, and how soon."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import PolicyErrors
from orchestrator.core.yaml_text import DEPTH_LIMIT, SIZE_LIMIT, VALUE_LIMIT, Reader


def refusal(text: str | bytes) -> tuple[int, int, str, str]:
    """Line, column, message and remedy of the one thing that is wrong with ``text``."""
    reader = Reader("f.yml")
    assert reader.document(text) is None
    (error,) = reader.errors
    return error.line, error.column, error.message, error.remedy


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "remedy"),
    [
        ("a: 1\nb: *x\n", 2, 4, "*x is a YAML alias", '"*x"'),
        ("a: &x 1\n", 1, 4, "anchor", "take it out"),
        ("a: !!python/object/apply:os.system [x]\n", 1, 4, "tag", "take it out"),
        ("a: !mine x\n", 1, 4, "tag", "take it out"),
        ("host: *.example.com\n", 1, 7, "*.example.com begins with a star", '"*.example.com"'),
        ("allow:\n  - host: **.example.com\n", 2, 11, "**.example.com begins with a star", '"**.example.com"'),
        ("allow: [*.a.example]\n", 1, 9, "*.a.example begins with a star", '"*.a.example"'),
        ("a:\n\t- b\n", 2, 1, "tab", "spaces"),
        ("a: 1\n---\nb: 2\n", 2, 1, "second document", "take out the ---"),
        ("a: b: c\n", 1, 5, "mapping values are not allowed here", "colons"),
        ("a: [1, 2\n", 2, 1, "not YAML", "quotes"),
        ("a: \x07\n", 1, 4, "character", "take it out"),
        ("%YAML 9.1\n---\na: 1\n", 1, 1, "version", "check"),
        (b"a: \xff\n", 1, 4, "not UTF-8", "UTF-8"),
        (b"ok: 1\nb: \xc3\xa9\xff\n", 2, 5, "not UTF-8", "UTF-8"),
    ],
)
def test_what_is_refused_and_where(text: str | bytes, line: int, column: int, message: str, remedy: str) -> None:
    found = refusal(text)
    assert found[:2] == (line, column)
    assert message in found[2]
    assert remedy in found[3]


def test_a_file_of_the_greatest_size_is_read_and_one_byte_more_is_not() -> None:
    text = "a: " + "x" * (SIZE_LIMIT - 3)
    assert Reader("f").document(text) is not None
    assert "the limit is" in refusal(text + "x")[2]
    assert "the limit is" in refusal("é" * (SIZE_LIMIT // 2 + 1))[2]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_depth_ends_before_the_stack_does(opening: str) -> None:
    assert f"more than {DEPTH_LIMIT} levels" in refusal(opening * 50_000)[2]


def test_the_number_of_values_is_limited() -> None:
    assert f"more than {VALUE_LIMIT} values" in refusal("{" + "a," * (VALUE_LIMIT + 1) + "}")[2]


def test_an_anchored_bomb_is_refused_at_its_first_anchor() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
    assert refusal(bomb)[:3] == (1, 4, "f.yml:1:4: a YAML anchor (&) has no use in a policy")


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "\ufeff"])
def test_an_empty_document_is_no_error_of_the_text(text: str) -> None:
    reader = Reader("f")
    assert reader.document(text) is None
    assert reader.errors == []


@given(st.text(max_size=60) | st.text("ab:-*&!{}[]\"'\n #|>?%@`,\t", max_size=40))
def test_any_text_is_read_or_refused_in_place(text: str) -> None:
    reader = Reader("f.yml")
    node = reader.document(text)
    assert node is None or isinstance(node, yaml.Node)
    for error in reader.errors:
        assert error.line >= 1
        assert error.column >= 1
        assert error.remedy


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    Reader("f.yml").document(data)


def read_mapping(text: str) -> tuple[Reader, dict[str, yaml.Node]]:
    reader = Reader("f.yml")
    node = reader.document(text)
    assert node is not None
    return reader, reader.mapping(node, ("mode", "allow"), "a policy", {"allowlist": "allow"})


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("moed: x\n", "'moed' isn't a key of a policy", "did you mean mode?"),
        ("Mode: x\n", "'Mode' isn't a key of a policy", "write mode"),
        ("allowlist: x\n", "'allowlist' isn't a key", "write allow"),
        ("zzz: x\n", "'zzz' isn't a key", "write mode or allow"),
        ("<<: {mode: x}\n", "'<<' isn't a key", "write mode or allow"),
        ("[a]: x\n", "isn't a key", "write mode or allow"),
        ("mode: a\nmode: b\n", "mode is written twice; line 1 has it too", "keep one"),
        ("- a\n", "must be a mapping with mode and allow, not a list", "write mode: ..."),
        ("a\n", "must be a mapping with mode and allow, not text", "write mode: ..."),
        ('"\\e[31mred": x\n', "'\\x1b[31mred' isn't a key", "write mode or allow"),
    ],
)
def test_keys_that_do_not_belong(text: str, message: str, remedy: str) -> None:
    reader, _ = read_mapping(text)
    (error,) = reader.errors
    assert message in error.message
    assert remedy in error.remedy


def scalar(text: str) -> tuple[Reader, yaml.Node]:
    reader = Reader("f.yml")
    node = reader.document(text)
    assert node is not None
    return reader, node


@pytest.mark.parametrize(("text", "value"), [("22", 22), ("0", 0), ("65535", 65535)])
def test_whole_numbers(text: str, value: int) -> None:
    reader, node = scalar(text)
    assert reader.integer(node, "a port", 0, 65535) == value
    assert reader.errors == []


@pytest.mark.parametrize(
    "text", ["022", "0x16", "1_0", "22.0", "'22'", "-1", "65536", "true", "[22]", "1:30", "9" * 400]
)
def test_what_is_no_whole_number_in_range(text: str) -> None:
    reader, node = scalar(text)
    assert reader.integer(node, "a port", 0, 65535) is None
    assert len(reader.errors) == 1


@pytest.mark.parametrize("text", ["yes", "on", "'true'", "1", "True", "~", "[]"])
def test_true_and_false_have_one_spelling(text: str) -> None:
    reader, node = scalar(text)
    assert reader.boolean(node, "allow_ech") is False
    assert len(reader.errors) == 1


def test_text_that_yaml_takes_for_something_else_gets_its_quotes() -> None:
    reader, node = scalar("1.5")
    assert reader.text(node, "host") is None
    assert reader.errors[0].remedy == 'put it in quotes: "1.5"'


def test_a_comment_is_one_line_that_can_be_shown() -> None:
    reader, node = scalar('"a\\e[2Jb"')
    assert reader.line(node, "comment") is None
    assert "can't be shown" in reader.errors[0].message


def test_everything_wrong_is_told_at_once_in_the_order_of_the_lines() -> None:
    reader = Reader("f.yml")
    reader.finish()
    root = reader.document("mode: 1\nallow: 2\n")
    assert root is not None
    fields = reader.mapping(root, ("mode", "allow"), "a policy")
    reader.sequence(fields["allow"], "allow")
    reader.text(fields["mode"], "mode")
    with pytest.raises(PolicyErrors) as caught:
        reader.finish()
    assert [error.line for error in caught.value.errors] == [1, 2]
    assert caught.value.code == "policy-invalid"
    assert caught.value.as_list()[1]["line"] == 2
    assert caught.value.exit_status == 2
