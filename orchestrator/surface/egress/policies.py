"""Policies as the commands get them: a repository's from the control plane, files from the disk, hosts from the image."""

from __future__ import annotations

import sys
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

ImagePresets = dict[str, tuple[str, ...]]


class Given(msgspec.Struct, frozen=True):
    """What the latest job of a repository was given; ``at`` in seconds since the epoch."""

    repo: str
    at: float
    digest: str
    policy: Policy


class _Manifest(msgspec.Struct):
    presets: ImagePresets = {}


def given_to(client: ApiClient, repo: str) -> Given:
    """The policy of the latest job of ``repo``.  Raises UserError where it had none."""
    try:
        return msgspec.convert(client.get("policy", {"repo": repo}), Given)
    except UserError as error:
        if error.code != "not-found":
            raise
        raise UserError(
            f"no job of {repo} was given a policy yet",
            code="not-found",
            remedy="Name the repository as owner/name, or give its policy as a file: --file .ironcd/policy.yml",
        ) from error


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
