from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchestrator.core.errors import ConfigurationError, HostError
from runner_image.tarball import RunnerSource, fetch, github_runner

DATA = b"a tarball"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "runner.tar.gz"
    path.write_bytes(DATA)
    return path


def test_a_local_file_is_verified_and_kept(tmp_path: Path, local: Path) -> None:
    place = fetch(RunnerSource(str(local), SHA256.upper(), "1"), tmp_path / "cache")
    assert place.read_bytes() == DATA
    local.unlink()
    assert fetch(RunnerSource(str(local), SHA256, "1"), tmp_path / "cache") == place


def test_another_file_than_wanted_is_refused_and_not_kept(tmp_path: Path, local: Path) -> None:
    with pytest.raises(HostError) as caught:
        fetch(RunnerSource(str(local), "0" * 64, "1"), tmp_path / "cache")
    assert caught.value.code == "runner-digest"
    assert SHA256 in caught.value.message
    assert list((tmp_path / "cache/downloads").iterdir()) == []


def test_a_kept_file_that_was_changed_is_fetched_anew(tmp_path: Path, local: Path) -> None:
    place = fetch(RunnerSource(str(local), SHA256, "1"), tmp_path / "cache")
    place.write_bytes(b"something else")
    assert fetch(RunnerSource(str(local), SHA256, "1"), tmp_path / "cache").read_bytes() == DATA


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        fetch(RunnerSource(str(tmp_path / "none"), SHA256, "1"), tmp_path / "cache")
    assert caught.value.code == "runner-download"


@pytest.mark.parametrize("digest", ["", "x" * 64, "a" * 63])
def test_a_digest_that_is_none(tmp_path: Path, local: Path, digest: str) -> None:
    with pytest.raises(ConfigurationError):
        fetch(RunnerSource(str(local), digest, "1"), tmp_path / "cache")


def test_githubs_release() -> None:
    source = github_runner("2.336.0", SHA256)
    assert source.location == (
        "https://github.com/actions/runner/releases/download/v2.336.0/actions-runner-linux-x64-2.336.0.tar.gz"
    )
