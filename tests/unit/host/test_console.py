from __future__ import annotations

from orchestrator.host.console import TAIL_BYTES, clean, parts, tail


def test_the_tail_has_no_secret_and_no_control_character(tmp_path):
    log = tmp_path / "console.log"
    secret = "c29tZXNlY3JldA" * 3
    log.write_bytes(b"x" * 50_000 + f"\r\n\x1b[0;32mOK\x1b[0m ghs_{'a' * 36} {secret}\x07 end\n".encode())
    text = tail(log, (secret,))
    assert text.endswith("OK [secret] [secret] end\n")
    assert len(text) <= TAIL_BYTES


def test_bytes_that_arent_text_are_no_error(tmp_path):
    log = tmp_path / "console.log"
    log.write_bytes(bytes(range(256)) * 10)
    assert "\x00" not in tail(log)


def test_no_console_is_an_empty_tail(tmp_path):
    assert tail(tmp_path / "nothing") == ""


def test_a_short_secret_isnt_replaced():
    assert clean("a b c", ("b",)) == "a b c"


def test_rotated_parts_belong_to_it(tmp_path):
    for name in ("a.log", "a.log.0", "a.log.1", "b.log"):
        (tmp_path / name).touch()
    assert [path.name for path in parts(tmp_path / "a.log")] == ["a.log", "a.log.0", "a.log.1"]
