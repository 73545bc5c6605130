"""IronCD's configuration: one TOML file, and the environment over it.

Order: ``IRONCD_<SECTION>__<KEY>`` in the environment, then the file, then the default.  The file is the one that was
named (``--config`` or ``IRONCD_CONFIG``), or ``/etc/ironcd/ironcd.toml`` where that exists.

Rules:

* An unknown key is an error, in the file and in the environment: a typing error must not open or close anything silently.
* Secrets stand neither in the file nor in the environment, which every child inherits: each has a file of its own
  (``..._file``).
* The sections that core describes (``[host]``, ``[classes.NAME]``) are made from core's own types: one list of keys.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import msgspec
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from orchestrator.control.settings import ControlSettings, Pace
from orchestrator.core.errors import ConfigurationError
from orchestrator.core.machine import OUR_LABEL, MachineClass
from orchestrator.core.retention import Keep, Retention
from orchestrator.core.runner import Deadlines
from orchestrator.core.settings import HostSettings
from orchestrator.core.sharing import Sharing
from orchestrator.surface.sections import Section, section_of
from orchestrator.surface.sharing import SharingSection, label_of, sharing_of

DEFAULT_FILE = Path("/etc/ironcd/ironcd.toml")
PREFIX = "IRONCD_"
_NOT_SETTINGS = frozenset({"IRONCD_CONFIG", "IRONCD_DEBUG"})
_OPEN_ENDED = tuple(
    f"{PREFIX}{start}__"
    for start in ("CLASSES", "CONTROL__HOST_TOKEN_FILES", "AUDIT__ORGANISATIONS", "AUDIT__HOST_KEYS")
    + ("SHARING__REPOSITORIES", "SHARING__ORGANISATIONS", "SHARING__CLASSES")
)


if TYPE_CHECKING:

    class HostSection(Section):
        name: str = ""

    class ClassSection(Section):
        pass

    class DeadlinesSection(Section):
        pass

    class PaceSection(Section):
        pass

else:
    HostSection = section_of(HostSettings)
    ClassSection = section_of(MachineClass, without=frozenset({"name"}))
    DeadlinesSection = section_of(Deadlines)
    PaceSection = section_of(Pace)


class GitHubSection(Section):
    app_id: int = 0
    """Of the GitHub App."""
    private_key_file: Path = Path("/etc/ironcd/app.pem")
    """The App's private key (PEM), mode 0600."""
    webhook_secret_files: tuple[Path, ...] = (Path("/etc/ironcd/webhook-secret"),)
    """One file a secret.  A delivery signed with any of them is accepted: list the old and the new one to rotate."""
    api_url: str = "https://api.github.com"
    """Of GitHub's REST API; for GitHub Enterprise Server ``https://HOST/api/v3``."""
    runner_group_id: int = Field(default=1, ge=1)
    """The organisation's runner group that runners are registered in."""
    registration: Literal["organisation", "repository"] = "organisation"
    """Where an organisation's runners are registered.  GitHub gives an organisation's runner to any of its repositories; with
    ``repository`` each takes jobs of its own repository only, so quotas and shares hold to the machine.  The App then needs
    the repository permission *Administration: write*."""
    installations: tuple[int, ...] = ()
    """Where any is named, deliveries of other installations are set aside."""
    concurrency: int = Field(default=8, ge=1)
    """How many requests to GitHub may be under way at once."""


class ControlSection(Section):
    listen: str = "127.0.0.1:8470"
    """``address:port`` of the control API, which takes the webhooks too.  Put a TLS proxy in front of it."""
    admin_token_file: Path = Path("/etc/ironcd/admin-token")
    """Bearer token of the admin API, which the ``ironcd`` command uses too."""
    host_token_files: dict[str, Path] = Field(default_factory=dict)
    """Host name to the file with its bearer token.  Empty: this machine's ``host.name`` and ``host.token_file``."""
    url: str = ""
    """Where the ``ironcd`` command finds the control API; empty for ``listen``."""
    state_dir: Path = Path("/var/lib/ironcd/control")
    """The archive of finished jobs, the egress record, and the key that seals JIT configurations."""
    finished_kept: int = Field(default=10_000, ge=0)
    """Finished jobs that stay in Redis; all stay in the archive."""
    unserved_kept: int = Field(default=5_000, ge=0)
    """So many jobs that aren't ours to serve are remembered, with the reason: `ironcd jobs list --unserved`."""
    unserved_days: float = Field(default=7.0, ge=0)
    """And for so many days."""
    rerun_on_infra_loss: tuple[str, ...] = ()
    """Whose jobs are run again after their machine was lost: ``*``, organisations, ``owner/name``, ``class:ironcd-NAME``.
    Deployments never are, nor what a person cancelled.  The App needs *Actions: read and write* for it."""
    rerun_budget: int = Field(default=1, ge=1, le=2)
    """A run is run again for that so often at most."""
    deadlines: DeadlinesSection = Field(default_factory=DeadlinesSection)
    """How long each phase of a runner may last."""
    pace: PaceSection = Field(default_factory=PaceSection)
    """How long things wait for one another."""


class RedisSection(Section):
    url: str = "unix:///run/ironcd/redis.sock"
    """``redis://``, ``rediss://`` or ``unix://``.  Its append-only file must be on."""
    start: bool = True
    """``ironcd up`` starts a Redis of its own at ``url``, with every write flushed to disk."""
    folder: Path = Path("/var/lib/ironcd/redis")
    """Where a Redis of our own keeps its files."""
    prefix: str = "ironcd:"
    """Of every key."""


class PolicySection(Section):
    organisation_file: Path | None = None
    """The policy above every repository's own.  None: each repository must have one."""


class KeepSection(Section):
    """Of one organisation."""

    egress_days: int = Field(default=365, ge=0)
    """Records of allowed traffic are kept for so many days; 0 keeps them for ever."""
    security_days: int = Field(default=730, ge=0)
    """Records of what was blocked, or would have been, or was flagged or lost; 0 keeps them for ever."""


class AuditSection(Section):
    egress_days: int = Field(default=365, ge=0)
    """Records of allowed traffic are kept for so many days; 0 keeps them for ever."""
    security_days: int = Field(default=730, ge=0)
    """Records of what was blocked, or would have been, or was flagged or lost; 0 keeps them for ever."""
    delete: bool = True
    """Delete once a day what is over; without it only ``ironcd audit retain`` does."""
    organisations: dict[str, KeepSection] = Field(default_factory=dict)
    """Organisations with times of their own: ``[audit.organisations.NAME]`` with ``egress_days`` and ``security_days``."""
    checkpoint_copies: Path | None = None
    """A folder that neither hosts nor the control plane can change once it is written, such as a mounted bucket with object
    lock: signed checkpoints are copied there, and ``ironcd audit verify`` holds the record against them."""
    checkpoint_copy_s: float = Field(default=600.0, ge=1.0)
    """The newest checkpoint of each ledger is copied so often."""
    host_keys: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Host name to the public keys that its checkpoints may be signed with, as ``ledger-key.pub`` on the host has them.
    Without an entry the key that came first is taken as the right one."""


class LogSection(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe lines that are written."""
    folder: Path | None = None
    """``ironcd up`` writes one file a process here; None for standard error."""


class Settings(BaseSettings):
    """The whole configuration.  Made with `load`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    github: GitHubSection = GitHubSection()
    control: ControlSection = ControlSection()
    redis: RedisSection = RedisSection()
    host: HostSection = Field(default_factory=lambda: HostSection(name=os.uname().nodename))
    classes: dict[str, ClassSection] = {}
    sharing: SharingSection = SharingSection()
    policy: PolicySection = PolicySection()
    audit: AuditSection = AuditSection()
    log: LogSection = LogSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment over what `load` read from the file; no other source."""
        del dotenv_settings, file_secret_settings
        file = init_settings.init_kwargs if isinstance(init_settings, InitSettingsSource) else {}
        return env_settings, InitSettingsSource(settings_cls, init_kwargs=file)

    def host_settings(self) -> HostSettings:
        return msgspec.convert(self.host.model_dump(), HostSettings)

    def control_settings(self) -> ControlSettings:
        github, control, policy = self.github, self.control, self.policy
        host = self.host_settings()
        return ControlSettings(
            app_id=github.app_id,
            redis_url=self.redis.url,
            prefix=self.redis.prefix,
            state_dir=str(control.state_dir),
            api_url=github.api_url,
            private_key_file=str(github.private_key_file),
            webhook_secret_files=tuple(map(str, github.webhook_secret_files)),
            admin_token_file=str(control.admin_token_file),
            hosts={name: str(path) for name, path in control.host_token_files.items()} or {host.name: host.token_file},
            runner_group_id=github.runner_group_id,
            installations=github.installations,
            registration=github.registration,
            sharing=self.shares(),
            classes=self.machine_classes(),
            organisation_policy_file=str(policy.organisation_file or ""),
            deadlines=msgspec.convert(control.deadlines.model_dump(), Deadlines),
            pace=msgspec.convert(control.pace.model_dump(), Pace),
            rerun_on_infra_loss=control.rerun_on_infra_loss,
            rerun_budget=control.rerun_budget,
            finished_kept=control.finished_kept,
            unserved_kept=control.unserved_kept,
            unserved_days=control.unserved_days,
            github_concurrency=github.concurrency,
            retention=self.retention(),
            delete_records=self.audit.delete,
            checkpoint_copies=str(self.audit.checkpoint_copies or ""),
            checkpoint_copy_s=self.audit.checkpoint_copy_s,
        )

    def retention(self) -> Retention:
        audit = self.audit
        organisations = {
            name.lower(): Keep(keep.egress_days, keep.security_days) for name, keep in audit.organisations.items()
        }
        return Retention(Keep(audit.egress_days, audit.security_days), organisations)

    def shares(self, source: str = "the configuration") -> Sharing:
        """Raises ConfigurationError for a name that names nothing."""
        return sharing_of(self.sharing, self.machine_classes(), source)

    def machine_classes(self) -> dict[str, MachineClass]:
        """By label.  The default class is there even where the file names none."""
        classes = {OUR_LABEL: MachineClass(name=OUR_LABEL)}
        for name, section in self.classes.items():
            label = label_of(name)
            classes[label] = msgspec.convert({**section.model_dump(), "name": label}, MachineClass)
        return classes


def config_file(named: Path | None) -> Path | None:
    """The file to read: ``named``, or ``IRONCD_CONFIG``, or the default one where it exists."""
    if named is not None:
        return named
    from_env = os.environ.get("IRONCD_CONFIG")
    if from_env:
        return Path(from_env)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load(named: Path | None = None) -> Settings:
    """Read the configuration.  Raises ConfigurationError, which names the file or variable, the key, and what to do."""
    path = config_file(named)
    data = _read(path) if path is not None else {}
    source = str(path) if path is not None else "the environment"
    _refuse_unknown_variables(os.environ)
    try:
        host = {"name": os.uname().nodename, **_table(data, "host")}
        settings = Settings(**{**data, "host": host})
    except ValidationError as error:
        raise _readable(error, source) from None
    settings.shares(source)
    return settings


def read_secret(path: Path, what: str) -> str:
    """The secret in ``path``, without the newline at its end."""
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"{what}: cannot read {path} ({error.strerror})",
            code="secret-unreadable",
            remedy=f"Put the secret into {path}, mode 0600, readable by the user that runs IronCD.",
        ) from error
    if not secret:
        raise ConfigurationError(
            f"{what}: {path} is empty", code="secret-unreadable", remedy=f"Put the secret into {path}."
        )
    return secret


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}",
            code="config-unreadable",
            remedy="Name another file with --config, or put one there: docs/reference/configuration.md lists its keys.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path}: {error}", code="config-invalid", remedy="Mend the file: it must be TOML in UTF-8."
        ) from error


def _table(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key, {})
    return value if isinstance(value, dict) else {}


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = set(variables())
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in _NOT_SETTINGS or name in known:
            continue
        if name.startswith(_OPEN_ENDED):
            continue
        raise ConfigurationError(
            f"environment variable {name}: no setting has this name",
            code="config-unknown-key",
            remedy=_nearest(name, known) or "docs/reference/configuration.md lists the settings.",
        )


def variables() -> dict[str, str]:
    """Each environment variable that sets a key, to the key (``section.key``).  Classes are open-ended and not listed."""
    found: dict[str, str] = {}
    for section, field in Settings.model_fields.items():
        for key, inner in _keys_of(field.annotation).items():
            found[f"{PREFIX}{section.upper()}__{key.upper()}"] = f"{section}.{key}"
            for deeper in _keys_of(inner.annotation):
                found[f"{PREFIX}{section.upper()}__{key.upper()}__{deeper.upper()}"] = f"{section}.{key}.{deeper}"
    return found


def _keys_of(annotation: Any) -> Mapping[str, FieldInfo]:
    return annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}


def _nearest(word: str, known: set[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]}?" if near else ""


def _keys_at(location: tuple[int | str, ...]) -> set[str]:
    """The keys that may stand where the last part of ``location`` stands."""
    keys: Mapping[str, FieldInfo] = Settings.model_fields
    parts = iter(location[:-1])
    for part in parts:
        field = keys.get(str(part))
        annotation = field.annotation if field is not None else None
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1] if next(parts, None) is not None else None
        keys = _keys_of(annotation)
    return set(keys)


def _readable(error: ValidationError, source: str) -> ConfigurationError:
    """The first mistake in words.  Never shows a value: it could be a secret."""
    first = error.errors(include_input=False, include_url=False)[0]
    location = first["loc"]
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        known = _keys_at(location)
        remedy = _nearest(str(location[-1]), known) or f"Known here: {', '.join(sorted(known))}."
        return ConfigurationError(f"{source}: {key}: no such key", code="config-unknown-key", remedy=remedy)
    return ConfigurationError(
        f"{source}: {key}: {first['msg'][:1].lower()}{first['msg'][1:]}",
        code="config-invalid",
        remedy="docs/reference/configuration.md lists each key with its type and default.",
    )
