"""The doctor: every check has its say, and none can keep another from it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import httpx
import pytest

from orchestrator.core.errors import ConfigurationError
from orchestrator.core.wire import Image
from orchestrator.surface import doctor
from orchestrator.surface.api_client import ApiClient
from orchestrator.surface.doctor import Finding, examine
from orchestrator.surface.settings import Settings


@pytest.fixture
def settings(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    files = {"private_key_file": secret, "webhook_secret_files": [secret]}
    host = {"name": "h", "token_file": str(secret), "state_dir": str(tmp_path / "a" / "b"), "cache_dir": str(tmp_path)}
    return Settings(github=files, control={"admin_token_file": secret}, host=host)


def test_a_check_that_raises_has_failed_in_its_own_words(monkeypatch, settings):
    def broken(_settings):
        raise ConfigurationError("it broke", code="c", remedy="mend it")

    def worse(_settings):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(doctor, "CHECKS", {"broken": broken, "worse": worse, "well": lambda _s: ("ok", "fine", "")})
    first, second, third = examine(settings)
    assert first == Finding("broken", "fail", "it broke", "mend it")
    assert (second.state, second.found) == ("fail", "RuntimeError: unforeseen")
    assert third == Finding("well", "ok", "fine")


def test_missing_programs_are_named(monkeypatch, settings):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name == "virsh" else f"/bin/{name}")
    state, found, remedy = doctor.CHECKS["programs"](settings)
    assert (state, found) == ("fail", "not found: virsh")
    assert "make setup" in remedy


def test_secrets_must_be_there_and_be_nobody_elses(settings):
    assert doctor.CHECKS["secrets"](settings)[0] == "ok"
    settings.github.private_key_file.chmod(0o644)
    assert doctor.CHECKS["secrets"](settings)[0] == "warn"
    settings.github.private_key_file.unlink()
    assert doctor.CHECKS["secrets"](settings)[0] == "fail"


def test_room_is_looked_for_where_the_folder_will_be(monkeypatch, settings):
    sizes = iter([(0, 0, 50 << 30), (0, 0, 10 << 30), (0, 0, 1 << 30)])
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": next(sizes)[2]}))
    assert [doctor.CHECKS["disk"](settings)[0] for _ in range(3)] == ["ok", "warn", "fail"]


def test_copies_of_checkpoints_are_made_in_time(settings, tmp_path):
    from orchestrator.audit.copies import copy_newest
    from tests.unit.audit.record import Made

    def found(**audit):
        control = {"state_dir": tmp_path, "admin_token_file": settings.control.admin_token_file}
        return doctor.CHECKS["copies of checkpoints"](Settings(audit=audit, control=control, host={"name": "h"}))[0]

    elsewhere = tmp_path / "elsewhere"
    made = Made(tmp_path / "audit")
    assert (found(), found(checkpoint_copies=elsewhere)) == ("warn", "fail")
    elsewhere.mkdir()
    assert found(checkpoint_copies=elsewhere) == "fail"
    copy_newest(tmp_path / "audit", elsewhere, 1.0)
    assert found(checkpoint_copies=elsewhere) == "ok"
    made.write_notes([*made.notes, made.signer.note(31, b"r" * 32)])
    assert found(checkpoint_copies=elsewhere) == "fail"


def test_an_image_that_a_class_asks_for_must_be_there(settings):
    state, found, remedy = doctor.CHECKS["image"](settings)
    assert (state, found) == ("fail", "missing: default")
    assert "image build" in remedy


@pytest.mark.parametrize(("days", "state"), [(1, "ok"), (8, "warn"), (26, "fail")])
def test_row_20_the_runner_in_an_image_is_held_against_githubs_latest(monkeypatch, settings, days, state):
    published = datetime.fromtimestamp(time.time() - days * 86400, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = httpx.Response(200, json={"tag_name": "v2.400.0", "published_at": published})
    monkeypatch.setattr(httpx, "get", lambda *_args, **_kwargs: answer)
    monkeypatch.setattr("orchestrator.host.images.list_images", lambda _folder: (Image("default", "d", "2.336.0"),))
    assert doctor.CHECKS["runner version"](settings)[0] == state


def test_row_12_a_quarantine_is_shown(monkeypatch, settings):
    held = [{"subject": "host:h1", "reason": "3 starts failed"}]
    shown = httpx.MockTransport(lambda _request: httpx.Response(200, json={"quarantine": held}))
    monkeypatch.setattr(ApiClient, "of", lambda _settings: ApiClient("http://test", "t", transport=shown))
    state, found, _ = doctor.CHECKS["quarantine"](settings)
    assert (state, found) == ("warn", "host:h1: 3 starts failed")


@pytest.mark.parametrize(
    ("registration", "permissions", "state"),
    [
        ("organisation", {"organization_self_hosted_runners": "write"}, "ok"),
        ("repository", {"organization_self_hosted_runners": "write"}, "fail"),
        ("repository", {"administration": "read"}, "fail"),
        ("repository", {"administration": "write"}, "ok"),
    ],
)
def test_runners_of_repositories_need_a_permission(monkeypatch, registration, permissions, state):
    answer = httpx.Response(200, json={"slug": "ironcd", "id": 7, "permissions": permissions})
    monkeypatch.setattr(doctor, "_ask_github", lambda _settings: answer)
    found = doctor.CHECKS["GitHub App"](Settings(github={"registration": registration}, host={"name": "h"}))
    assert found[0] == state
    assert state == "ok" or "Administration: write" in found[1]


def test_templates_are_told_by_their_files(settings, tmp_path):
    assert doctor.CHECKS["templates"](settings)[:2] == ("warn", "none yet: jobs boot cold")
    folder = tmp_path / "a" / "b" / "templates"
    (folder / ("a" * 64)).mkdir(parents=True)
    (folder / ("a" * 64) / "ram").write_bytes(b"x" * (2 << 20))
    (folder / ".building-x").mkdir()
    assert doctor.CHECKS["templates"](settings)[:2] == ("ok", f"1, 2 MiB in {folder}")
