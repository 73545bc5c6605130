"""The configuration: file, environment, defaults, and mistakes told in words that help."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.core.errors import ConfigurationError
from orchestrator.core.machine import MachineClass
from orchestrator.core.settings import HostSettings
from orchestrator.core.sharing import Share
from orchestrator.surface import settings as module
from orchestrator.surface.settings import ClassSection, HostSection, load, read_secret


@pytest.fixture(autouse=True)
def _no_configuration_of_this_machine(monkeypatch, tmp_path):
    import os

    for name in list(os.environ):
        if name.startswith("IRONCD_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "absent.toml")


def write(folder: Path, text: str) -> Path:
    path = folder / "ironcd.toml"
    path.write_text(text)
    return path


def test_defaults_need_no_file():
    settings = load()
    assert settings.control.listen == "127.0.0.1:8470"
    assert settings.machine_classes() == {"ironcd": MachineClass(name="ironcd")}
    host = settings.host_settings()
    assert msgspec.structs.replace(host, name="x") == HostSettings(name="x")


def test_the_host_section_has_the_keys_of_the_host_settings():
    assert list(HostSection.model_fields) == [field.name for field in msgspec.structs.fields(HostSettings)]
    assert list(ClassSection.model_fields) == [f.name for f in msgspec.structs.fields(MachineClass) if f.name != "name"]


def test_file_is_read(tmp_path):
    path = write(
        tmp_path,
        """
        [github]
        app_id = 7
        [host]
        name = "metal-1"
        upstream_dns = ["10.0.0.53"]
        [classes.default]
        vcpus = 4
        [classes.gpu]
        gpus = 1
        """,
    )
    settings = load(path)
    assert settings.github.app_id == 7
    assert settings.host_settings().name == "metal-1"
    assert settings.host_settings().upstream_dns == ("10.0.0.53",)
    assert settings.machine_classes() == {
        "ironcd": MachineClass(name="ironcd", vcpus=4),
        "ironcd-gpu": MachineClass(name="ironcd-gpu", gpus=1),
    }


def test_environment_wins_over_file(tmp_path, monkeypatch):
    path = write(tmp_path, '[host]\nname = "from-file"\ntls_port = 1\n')
    monkeypatch.setenv("IRONCD_HOST__TLS_PORT", "2")
    monkeypatch.setenv("IRONCD_HOST__UPSTREAM_DNS", '["10.9.9.9"]')
    host = load(path).host_settings()
    assert (host.name, host.tls_port, host.upstream_dns) == ("from-file", 2, ("10.9.9.9",))


def test_the_file_can_be_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("IRONCD_CONFIG", str(write(tmp_path, "[github]\napp_id = 9\n")))
    assert load().github.app_id == 9


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("[github]\napp_idd = 1\n", "github.app_idd: no such key", "Did you mean app_id?"),
        ("[gihtub]\napp_id = 1\n", "gihtub: no such key", "Did you mean github?"),
        ("[classes.big]\nvcpu = 1\n", "classes.big.vcpu: no such key", "Did you mean vcpus?"),
        ("[host]\ntls_port = 'x'\n", "host.tls_port: input should be a valid integer", "docs/reference"),
        ("[log]\nlevel = 'loud'\n", "log.level: input should be", "docs/reference"),
        ("[host\n", "at line 1", "TOML"),
    ],
)
def test_a_mistake_names_file_key_and_remedy(tmp_path, text, message, remedy):
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert remedy in caught.value.remedy


def test_a_mistake_never_shows_the_value(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        load(write(tmp_path, "[github]\napp_id = 'hunter2hunter2'\n"))
    assert "hunter2" not in caught.value.message + caught.value.remedy


def test_an_unknown_variable_is_refused(monkeypatch):
    monkeypatch.setenv("IRONCD_HOST__TLSPORT", "1")
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert "IRONCD_HOST__TLSPORT" in caught.value.message
    assert "IRONCD_HOST__TLS_PORT" in caught.value.remedy


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nothing-here\.toml"):
        load(tmp_path / "nothing-here.toml")


def test_secrets_come_out_of_files_without_their_newline(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    assert read_secret(tmp_path / "token", "x") == "secret"


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_missing_or_empty_secret_is_an_error(tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"control\.admin_token_file"):
        read_secret(path, "control.admin_token_file")


def test_shares_are_read(tmp_path):
    path = write(
        tmp_path,
        """
        [classes.gpu]
        gpus = 1
        [sharing]
        ageing_s = 60
        [sharing.repository]
        runners = 20
        [sharing.repositories."Acme/App"]
        vcpus = 8
        priority = 5
        [sharing.organisations.Acme]
        weight = 2.5
        [sharing.classes.gpu]
        runners = 1
        [sharing.classes.ironcd-4cpu-16gb]
        priority = -3
        """,
    )
    sharing = load(path).control_settings().sharing
    assert sharing.of_repository("ACME/app") == Share(vcpus=8, priority=5)
    assert sharing.of_repository("acme/other") == Share(runners=20)
    assert sharing.of_organisation("acme").weight == 2.5
    assert sharing.of_class("ironcd-gpu").runners == 1
    assert sharing.priority_of("acme/app", "ironcd-4cpu-16gb") == 2
    assert (sharing.ageing_s, sharing.reserve_s) == (60.0, 120.0)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ('[sharing.repositories."a/b"]\nruners = 1\n', "sharing.repositories.a/b.runers: no such key", "mean runners?"),
        ("[sharing]\nrepository.runners = -1\n", "sharing.repository.runners: input should be greater", "reference"),
        ("[sharing]\norganisation.weight = 0\n", "sharing.organisation.weight: input should be greater", "reference"),
        ("[sharing]\nrepository.priority = 11\n", "sharing.repository.priority: input should be less", "reference"),
        ("[sharing.repositories.app]\nrunners = 1\n", 'sharing.repositories."app": a repository is', '"OWNER/app"'),
        ('[sharing.organisations."a/b"]\nrunners = 1\n', 'sharing.organisations."a/b": no organisation', "login"),
        (
            "[sharing.classes.gpuu]\nrunners = 1\n[classes.gpu]\n",
            'sharing.classes."gpuu": no class',
            "mean ironcd-gpu?",
        ),
        ("[audit.organisations.x]\negress_day = 1\n", "audit.organisations.x.egress_day", "mean egress_days?"),
    ],
)
def test_a_share_of_nobody_is_refused(tmp_path, text, message, remedy):
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert remedy in caught.value.remedy
