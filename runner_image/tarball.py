"""The runner that goes into an image: a tarball with a pinned digest, from a URL or a file.

Its content is never judged by where it comes from: GitHub's runner and the simulator's go the same way.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import msgspec

from orchestrator.core.errors import ConfigurationError, HostError
from orchestrator.system.process import CommandFailed, run
from runner_image.recipe import PATH

_CHUNK = 1024 * 1024
_LISTENER = "bin/Runner.Listener"
_REMEDY = "Give a gzipped tarball as actions/runner releases have it."


class RunnerSource(msgspec.Struct, frozen=True):
    """``location`` is an http(s) URL or a path; ``sha256`` 64 hexadecimal digits; ``version`` as the runner says it."""

    location: str
    sha256: str
    version: str


def github_runner(version: str, sha256: str) -> RunnerSource:
    """GitHub's release of actions/runner for Linux on x64; its page gives the SHA-256."""
    place = f"https://github.com/actions/runner/releases/download/v{version}"
    return RunnerSource(f"{place}/actions-runner-linux-x64-{version}.tar.gz", sha256, version)


def fetch(source: RunnerSource, cache_dir: Path) -> Path:
    """The tarball, verified, in ``cache_dir/downloads``; fetched only where it isn't there.

    Raises HostError: ``runner-download`` where it can't be had, ``runner-digest`` where it is another one.
    """
    wanted = source.sha256.lower()
    if len(wanted) != 64 or not set(wanted) <= set("0123456789abcdef"):
        raise ConfigurationError(
            f"{source.sha256!r} isn't a SHA-256",
            code="runner-digest",
            remedy="Give the 64 hexadecimal digits from the runner's release page.",
        )
    downloads = cache_dir / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    place = downloads / f"{wanted}.tar.gz"
    if place.is_file() and _sha256(place) == wanted:
        return place
    descriptor, name = tempfile.mkstemp(dir=downloads, prefix=".fetch-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            found = _copy(source.location, file)
        if found != wanted:
            raise HostError(
                f"{source.location} has SHA-256 {found}, not {wanted}",
                code="runner-digest",
                remedy="Check version and digest against the runner's release page; don't use what was downloaded.",
            )
        os.replace(name, place)
    except BaseException:
        os.unlink(name)
        raise
    return place


def unpack(tarball: Path, root: Path, folder: str, user: str) -> None:
    """Unpack into ``folder`` of the file system at ``root``, as ``user`` of it and locked up in it: whatever the tarball
    holds, it writes nothing elsewhere, and everything is ``user``'s.

    Raises HostError (``runner-tarball``) where it is no runner.
    """
    copy = root / "tmp/runner.tar.gz"
    shutil.copyfile(tarball, copy)
    copy.chmod(0o644)
    try:
        locked_up = ["chroot", f"--userspec={user}", str(root)]
        run([*locked_up, "tar", "-xzf", "/tmp/runner.tar.gz", "-C", f"/{folder}"], env={"PATH": PATH}, timeout_s=300)  # noqa: S108 - in the image
    except CommandFailed as error:
        raise HostError(
            f"the runner's tarball can't be unpacked: {error.message}", code="runner-tarball", remedy=_REMEDY
        ) from error
    finally:
        copy.unlink()
    if not os.access(root / folder / _LISTENER, os.X_OK):
        raise HostError(f"the runner's tarball has no program {_LISTENER}", code="runner-tarball", remedy=_REMEDY)


def _copy(location: str, file: IO[bytes]) -> str:
    """Copy what is at ``location`` to ``file``; the SHA-256 of it."""
    digest = hashlib.sha256()
    try:
        with _open(location) as chunks:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
    except (OSError, httpx.HTTPError) as error:
        raise HostError(
            f"the runner can't be had from {location}: {error}",
            code="runner-download",
            remedy="Check the address; or fetch the tarball yourself and give its path.",
        ) from error
    return digest.hexdigest()


@contextmanager
def _open(location: str) -> Iterator[Iterator[bytes]]:
    if location.startswith(("https://", "http://")):
        with httpx.stream("GET", location, follow_redirects=True, timeout=60) as answer:
            answer.raise_for_status()
            yield answer.iter_bytes(_CHUNK)
    else:
        with Path(location).open("rb") as file:
            yield iter(lambda: file.read(_CHUNK), b"")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
