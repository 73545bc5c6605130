"""The simulator's runner, its parts: what it unpacks, signs, masks and reads, and the tarball that it comes in."""

from __future__ import annotations

import ast
import base64
import gzip
import io
import json
import sys
import tarfile
from pathlib import Path

import jwt
import pytest

import orchestrator.simulator.runner as package
from orchestrator.simulator.github.jit import encode, rsa_parameters
from orchestrator.simulator.runner import runner_tarball
from orchestrator.simulator.runner.guest import files, rsa
from orchestrator.simulator.runner.guest.context import expand, plain
from orchestrator.simulator.runner.guest.later import Later
from orchestrator.simulator.runner.guest.masks import Masks
from orchestrator.simulator.runner.guest.warmup import warm_up

GUEST = Path(package.__file__).parent / "guest"


def test_the_tarball_is_the_same_each_time_and_holds_the_listener():
    data, digest, version = runner_tarball()
    assert runner_tarball() == (data, digest, version)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as archive:
        assert archive.getmember("bin/Runner.Listener").mode == 0o755
        assert {member.uid for member in archive} == {0}


def test_the_guest_imports_the_standard_library_only():
    allowed = sys.stdlib_module_names
    for path in GUEST.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert all(name.name.split(".")[0] in allowed for name in node.names), path
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] in allowed, path


def test_its_signature_is_one_that_others_verify(runner_key):
    token = rsa.assertion(rsa_parameters(runner_key), "client", "https://tokens.example/x")
    claims = jwt.decode(token, runner_key.public_key(), ["RS256"], audience="https://tokens.example/x", issuer="client")
    assert claims["sub"] == "client"
    assert claims["jti"]


def test_a_short_key_is_refused():
    number = base64.b64encode(b"\x61").decode()
    with pytest.raises(ValueError, match="too short"):
        rsa.sign(dict.fromkeys(("modulus", "p", "q", "dp", "dq", "inverseQ"), number), b"x")


def test_the_blob_becomes_the_three_files(github, runner_key, tmp_path):
    runner = github.engine.add_runner(
        name="r",
        owner=github.owner,
        repository=None,
        group_id=1,
        labels=["x"],
        work_folder="_work",
        key=runner_key.public_key(),
    )
    files.unpack(encode(runner, runner_key, github.url_of), tmp_path)
    settings, credentials, key = files.load(tmp_path)
    assert (settings["AgentName"], settings["UseV2Flow"], settings["Ephemeral"]) == ("r", True, True)
    assert settings["ServerUrlV2"] == "https://broker.actions.githubusercontent.com/"
    assert credentials["Scheme"] == "OAuth"
    assert set(key) == {"d", "dp", "dq", "exponent", "inverseQ", "modulus", "p", "q"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    files.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("blob", ["", "%%%", base64.b64encode(b"[]").decode(), base64.b64encode(b'{"a": 1}').decode()])
def test_a_bad_blob_is_refused(blob, tmp_path):
    def use() -> None:
        files.unpack(blob, tmp_path)
        files.load(tmp_path)

    with pytest.raises(files.BadBlob):
        use()


def test_command_files(tmp_path):
    path = tmp_path / "env"
    path.write_text("A=1\nB<<END\nline one\nline=two\nEND\nC=\n\nD==x\n")
    assert files.read_pairs(path) == {"A": "1", "B": "line one\nline=two", "C": "", "D": "=x"}
    for wrong in ("no equals sign", "B<<END\nnever ends"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"Invalid format|delimiter"):
            files.read_pairs(path)


def test_setup_info(tmp_path):
    assert files.setup_info(tmp_path) == []
    (tmp_path / ".setup_info").write_text(json.dumps([{"group": "IronCD", "detail": "one\ntwo"}]))
    assert files.setup_info(tmp_path) == ["##[group]IronCD", "one", "two", "##[endgroup]"]
    (tmp_path / ".setup_info").write_text("nonsense")
    assert files.setup_info(tmp_path) == ["##[warning].setup_info is not valid"]


def test_secrets_are_masked_in_each_form():
    masks = Masks()
    secret = "hunter222\nsecond line"
    masks.add(secret)
    text = f"a hunter222 b second line c {base64.b64encode(secret.encode()).decode()} d"
    assert masks.apply(text) == "a *** b *** c *** d"


def test_expressions_of_the_simple_kind():
    contexts = {"github": {"actor": "octocat"}, "steps": {"a": {"outputs": {"b-c": "1"}}}}
    assert expand("${{ github.actor }} ${{steps.a.outputs.b-c}} [${{ env.NONE }}]", contexts) == "octocat 1 []"
    assert expand("${{ 1 == 1 }}", contexts) == "${{ 1 == 1 }}"


def test_context_data():
    assert plain({"t": 2, "d": [{"k": "a", "v": "b"}, {"k": "c", "v": {"t": 1, "a": ["x"]}}]}) == {"a": "b", "c": ["x"]}


def test_what_is_sent_later_is_sent_in_order_and_all_of_it_before_the_end():
    sent: list[int] = []
    complaints: list[str] = []
    later = Later(complaints.append)

    def fail() -> None:
        raise OSError("no way out")

    for number in range(3):
        later.do("log", lambda number=number: sent.append(number))
        later.do("step state", fail)
    later.finish()
    assert sent == [0, 1, 2]
    assert complaints == ["Sending the step state failed: no way out"] * 3


def test_a_warmup_signs_and_shakes_hands_with_nobody(monkeypatch):
    signed: list[bytes] = []
    sign = rsa.sign
    monkeypatch.setattr(rsa, "sign", lambda key, data: signed.append(sign(key, data)) or signed[-1])
    warm_up()
    assert len(signed) == 1
