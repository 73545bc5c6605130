"""Policies as the commands get them: a repository's from the control plane, files from the disk, hosts from the image."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from orchestrator.core.errors import ConfigurationError, UserError
from orchestrator.core.policy import Policy
from orchestrator.core.policy_document import PolicyFile, Scope
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import Presets
from orchestrator.core.yaml_text import SIZE_LIMIT
from orchestrator.surface.api_client import ApiClient
from orchestrator.surface.settings import Settings

PATH = ".ironcd/policy.yml"

ImagePresets = dict[str, tuple[str, ...]]


class Given(msgspec.Struct, frozen=True):
    """What a job would get now, or got then; ``at`` in seconds since the epoch."""

    repo: str
    at: float
    policy: Policy
    digest: str
    branch: str = ""
    blob: str = ""
    url: str = ""
    organisation: bool = False
    job: int = 0

    @property
    def source(self) -> str:
        """Where it was read, in words."""
        when = datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if self.job:
            return f"the policy that job {self.job} of {self.repo} got ({when}, {self.digest})"
        file = f"{PATH} of {self.repo}, branch {self.branch}, blob {self.blob[:12]}"
        read = file if self.blob else f"{self.repo}, which has no {PATH} on its default branch"
        above = ", under the organisation's policy" if self.organisation else ""
        return f"{read}{above} (as of {when})"


class _NotGiven(msgspec.Struct):
    """Why there is no policy."""

    reason: str
    remedy: str = ""


class _Manifest(msgspec.Struct):
    presets: ImagePresets = {}


def given_now(client: ApiClient, repo: str) -> Given:
    """What a job of ``repo`` would get now, read from GitHub by the control plane.  Raises UserError where it'd be refused."""
    return _given(client, {"repo": repo}, f"a job of {repo} would be refused")


def text_now(client: ApiClient, repo: str) -> str:
    """The policy file of ``repo``'s default branch as it is now; empty where it has none."""
    return str(client.get("policy", {"repo": repo}).get("text", ""))


def given_then(client: ApiClient, job: int) -> Given:
    """What job ``job`` got.  Raises UserError where it got nothing."""
    return _given(client, {"job": job}, f"job {job} got no policy")


def _given(client: ApiClient, asked: dict[str, str | int | float | None], none: str) -> Given:
    told = client.get("policy", asked)
    if told.get("policy") is not None:
        return msgspec.convert(told, Given)
    why = msgspec.convert(told, _NotGiven)
    remedy = why.remedy or "`ironcd jobs show ID` tells a job's story."
    raise UserError(f"{none}: {why.reason}", code="policy-refused", remedy=remedy)


def read_file(path: Path, scope: Scope, presets: Presets, images: ImagePresets | None) -> PolicyFile:
    """The policy in ``path``.  Raises UserError."""
    return read_policy(read_text(path), source=str(path), presets=presets, scope=scope, image_presets=images)


def read_text(path: Path) -> bytes:
    """The bytes of ``path``, or of standard input for ``-``; one more than a policy may have, at most."""
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(SIZE_LIMIT + 1)
        with path.open("rb") as file:
            return file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", code="file-unreadable", remedy="Name a file that can be read."
        ) from error


def above(settings: Settings, named: Path | None, presets: Presets, images: ImagePresets | None) -> PolicyFile | None:
    """The organisation's policy: ``named``, or the one of the settings; None where there is none."""
    path = named or settings.policy.organisation_file
    return read_file(path, "org", presets, images) if path is not None else None


def image_presets(settings: Settings, image: str = "default") -> ImagePresets | None:
    """What was read off the package managers of this machine's image; None where it has no such image."""
    path = Path(settings.host_settings().cache_dir) / "images" / image / "manifest.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Manifest).presets
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"the image's description {path} can't be read: {error}",
            code="image-broken",
            remedy="Build the image again: ironcd image build",
        ) from error
