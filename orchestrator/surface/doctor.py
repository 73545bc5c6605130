"""Is this machine fit for IronCD?  Each check looks at the thing itself and says what to do where it isn't well.

A check is a function from the settings to a `Finding`; one that raises has failed, with the error's own words.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from orchestrator.core.errors import IronCDError
from orchestrator.surface.settings import Settings

if TYPE_CHECKING:
    import httpx

State = Literal["ok", "warn", "fail"]

_PROGRAMS = ("ip", "qemu-img", "qemu-system-x86_64", "virsh", "mmdebstrap", "mke2fs", "setpriv")
_DISK_FAIL_GIB = 5
_DISK_WARN_GIB = 20
_SKEW_WARN_S = 5
_SKEW_FAIL_S = 60


class Finding(msgspec.Struct, frozen=True):
    check: str
    state: State
    found: str
    remedy: str = ""


Check = Callable[[Settings], tuple[State, str, str]]


def examine(settings: Settings) -> list[Finding]:
    """Run every check; none stops another."""
    return [_run(name, check, settings) for name, check in CHECKS.items()]


def _run(name: str, check: Check, settings: Settings) -> Finding:
    try:
        return Finding(name, *check(settings))
    except IronCDError as error:
        return Finding(name, "fail", error.message, error.remedy)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is what the person needs to hear
        return Finding(name, "fail", f"{type(error).__name__}: {error}", "See the line before; report it if unclear.")


def _root(_settings: Settings) -> tuple[State, str, str]:
    if os.geteuid() == 0:
        return "ok", "runs as root", ""
    return "warn", "doesn't run as root", "Agent and gateway need root; run `ironcd doctor` as root to check them."


def _programs(_settings: Settings) -> tuple[State, str, str]:
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return "fail", "not found: " + ", ".join(missing), "Run `make setup`."
    return "ok", f"all {len(_PROGRAMS)} found", ""


def _kvm(settings: Settings) -> tuple[State, str, str]:
    """Starts a real guest's kernel under KVM, as the agent does: a device file alone proves nothing."""
    from orchestrator.host.accelerator import choose, device_problem
    from orchestrator.host.images import find_image, list_images
    from orchestrator.host.paths import host_paths

    host = settings.host_settings()
    paths = host_paths(host)
    problem = device_problem()
    if problem is not None:
        return "fail", problem.message, problem.remedy
    images = list_images(paths.images)
    if not images:
        return "warn", "can't be tried without an image", "Run `ironcd image build`, then this again."
    choice = choose(host, find_image(paths.images, images[0].name).kernel, cache=paths.cache)
    if choice.problem is not None:
        return "fail", choice.problem.message, choice.problem.remedy
    if choice.accelerator == "tcg":
        return (
            "warn",
            f"{choice.why}: machines are emulated",
            "For production, use a host whose guests start under KVM.",
        )
    return "ok", choice.why, ""


def _libvirt(settings: Settings) -> tuple[State, str, str]:
    from orchestrator.host.hypervisor import Libvirt

    uri = settings.host_settings().libvirt_uri
    hypervisor = Libvirt(uri, settings.host_settings().name)
    try:
        return "ok", f"QEMU {hypervisor.version()} at {uri}", ""
    finally:
        hypervisor.close()


def _nftables(_settings: Settings) -> tuple[State, str, str]:
    try:
        import nftables
    except ImportError:
        return "fail", "Python's binding of libnftables is missing", "Run `make setup` (package python3-nftables)."
    nft = nftables.Nftables()
    nft.set_json_output(True)
    status, _, error = nft.cmd("list tables")
    if status != 0:
        return "fail", f"libnftables: {error.strip()}", "Run as root, on a kernel with nf_tables."
    return "ok", "libnftables answers", ""


def _namespaces(_settings: Settings) -> tuple[State, str, str]:
    from orchestrator.system import netns

    name = f"icd-doctor-{secrets.token_hex(3)}"
    try:
        netns.create(name)
    finally:
        netns.delete(name)
    return "ok", "can be made", ""


def _redis(settings: Settings) -> tuple[State, str, str]:
    import redis

    client = redis.Redis.from_url(settings.redis.url, socket_timeout=5, decode_responses=True)
    try:
        client.ping()
        config = client.config_get("append*")
    except redis.RedisError as error:
        if settings.redis.start:
            return "warn", "not running", "`ironcd up` starts it (redis.start = true)."
        return "fail", f"{settings.redis.url.split('@')[-1]}: {error}", "Start Redis, or mend redis.url."
    finally:
        client.close()
    if config.get("appendonly") != "yes":
        return "fail", "its append-only file is off", "Set `appendonly yes`: accepted deliveries must survive a crash."
    if config.get("appendfsync") != "always":
        return "warn", "appendonly yes, appendfsync " + str(config.get("appendfsync")), "Set `appendfsync always`."
    return "ok", "appendonly yes, appendfsync always", ""


def _image(settings: Settings) -> tuple[State, str, str]:
    from runner_image.store import list_images

    names = {image.name for image in list_images(Path(settings.host_settings().cache_dir))}
    wanted = {machine.image for machine in settings.machine_classes().values()}
    if wanted - names:
        return "fail", "missing: " + ", ".join(sorted(wanted - names)), "Run `ironcd image build`."
    return "ok", ", ".join(sorted(wanted)), ""


def _runner_version(settings: Settings) -> tuple[State, str, str]:
    """The runner in each image here, held against the latest release at GitHub."""
    import httpx

    from orchestrator.core.runner_release import Releases, age_of, learn
    from orchestrator.host.images import list_images
    from orchestrator.host.paths import host_paths

    images = list_images(host_paths(settings.host_settings()).images)
    answer = httpx.get(f"{settings.github.api_url}/repos/actions/runner/releases/latest", timeout=10)
    if answer.status_code != 200:
        return "ok", f"can't be compared: this GitHub answers {answer.status_code}", ""
    latest, now = answer.json(), time.time()
    version, published = str(latest["tag_name"]), datetime.fromisoformat(latest["published_at"]).timestamp()
    releases = learn(Releases(), version.removeprefix("v"), published, now)
    late = {image.name: age_of(image.runner_version, releases, now) for image in images}
    said = "; ".join(f"{name}: {age.text}" for name, age in sorted(late.items()) if age.text)
    if not said:
        return "ok", f"{len(images)} images, the latest runner is {version}", ""
    refused = any(age.standing in ("blocked", "refused") for age in late.values())
    return ("fail" if refused else "warn"), said, "Run `ironcd image build`: GitHub takes a runner for 30 days."


def _fleet(settings: Settings) -> tuple[State, str, str]:
    """What the control plane says of its hosts."""
    from orchestrator.surface.api_client import ApiClient

    try:
        held = ApiClient.of(settings).get("quarantine")["quarantine"]
    except IronCDError as error:
        return "warn", f"the control plane can't be asked: {error.message}", "`ironcd up` starts it."
    if held:
        said = "; ".join(f"{one['subject']}: {one['reason']}" for one in held)
        return "warn", said, "docs/operations/failures.md; `ironcd quarantine lift` ends one."
    return "ok", "nobody is in quarantine", ""


def _secret_files(settings: Settings) -> tuple[State, str, str]:
    host = settings.host_settings()
    paths = [settings.github.private_key_file, *settings.github.webhook_secret_files, settings.control.admin_token_file]
    paths += [Path(host.token_file), *settings.control.host_token_files.values()]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        return "fail", "missing: " + ", ".join(missing), "docs/operations/install.md says how to make each."
    readable = [str(path) for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if readable:
        return "warn", "readable by others: " + ", ".join(readable), "chmod 0600 them."
    return "ok", f"{len(paths)} there, mode 0600", ""


def _github(settings: Settings) -> tuple[State, str, str]:
    response = _ask_github(settings)
    if response.status_code != 200:
        return (
            "fail",
            f"{settings.github.api_url}/app answered {response.status_code} to the App's JWT",
            "Mend github.app_id and github.private_key_file: they must belong to one App.",
        )
    told = response.json()
    held = told.get("permissions", {})
    if settings.github.registration == "repository" and held.get("administration") != "write":
        return (
            "fail",
            'github.registration is "repository", and the App hasn\'t the permission Administration: write',
            "Give it that permission and have it accepted, or register with the organisation: docs/operations/capacity.md.",
        )
    return "ok", f"App {told.get('slug', '')!r}, id {told.get('id')}", ""


def _clock(settings: Settings) -> tuple[State, str, str]:
    response = _ask_github(settings)
    if "date" not in response.headers:
        return "warn", "GitHub's answer has no date", "Compare the clock by hand."
    skew = abs(time.time() - parsedate_to_datetime(response.headers["date"]).timestamp())
    if skew > _SKEW_FAIL_S:
        return "fail", f"{skew:.0f} s off GitHub's", "Run an NTP client: GitHub refuses JWTs from another time."
    if skew > _SKEW_WARN_S:
        return "warn", f"{skew:.0f} s off GitHub's", "Run an NTP client."
    return "ok", f"within {_SKEW_WARN_S} s of GitHub's", ""


def _ask_github(settings: Settings) -> httpx.Response:
    import httpx
    import jwt

    from orchestrator.surface.settings import read_secret

    now = int(time.time())
    key = read_secret(settings.github.private_key_file, "github.private_key_file")
    token = jwt.encode({"iat": now - 60, "exp": now + 300, "iss": str(settings.github.app_id)}, key, algorithm="RS256")
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
    try:
        return httpx.get(f"{settings.github.api_url}/app", headers=headers, timeout=10)
    except httpx.HTTPError as error:
        raise IronCDError(
            f"{settings.github.api_url} can't be reached ({type(error).__name__})",
            code="github-unreachable",
            remedy="See that this machine reaches GitHub's API, and that github.api_url is right.",
        ) from error


def _disk(settings: Settings) -> tuple[State, str, str]:
    host = settings.host_settings()
    folder = Path(host.state_dir)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free >> 30
    if free < _DISK_FAIL_GIB:
        return "fail", f"{free} GiB free at {folder}", "Make room: a job's disk and the ledger must fit."
    if free < _DISK_WARN_GIB:
        return "warn", f"{free} GiB free at {folder}", f"Have at least {_DISK_WARN_GIB} GiB."
    return "ok", f"{free} GiB free at {folder}", ""


def _templates(settings: Settings) -> tuple[State, str, str]:
    """What this host's templates are, as its files say; whether they are whole, its agent knows."""
    from orchestrator.host.paths import host_paths
    from orchestrator.host.template_files import disk_bytes, list_keys

    wanted = [machine for machine in settings.machine_classes().values() if machine.start == "clone"]
    if not wanted:
        return "ok", "every class boots cold", ""
    folder = host_paths(settings.host_settings()).templates
    keys = list_keys(folder)
    taken = sum(disk_bytes(folder / key) for key in keys) >> 20
    if not keys:
        return (
            "warn",
            "none yet: jobs boot cold",
            "The agent makes them by itself; `ironcd templates list` says how far it is.",
        )
    return "ok", f"{len(keys)}, {taken} MiB in {folder}", ""


def _copies(settings: Settings) -> tuple[State, str, str]:
    from orchestrator.audit.copies import overdue

    place, record = settings.audit.checkpoint_copies, settings.control.state_dir / "audit"
    if place is None:
        remedy = "Set audit.checkpoint_copies to a folder that this machine can't change once it is written."
        return "warn", "none: who has this machine and a host's key could write the record anew", remedy
    if not place.is_dir():
        return "fail", f"there is no {place}", "Mount it, or mend audit.checkpoint_copies."
    late = overdue(record, place, time.time() - 3 * settings.audit.checkpoint_copy_s)
    if late:
        return "fail", f"not made lately: {', '.join(late)}", "See the control API's log for checkpoint_not_copied."
    return "ok", str(place), ""


CHECKS: dict[str, Check] = {
    "root": _root,
    "programs": _programs,
    "libvirt": _libvirt,
    "KVM": _kvm,
    "nftables": _nftables,
    "network namespaces": _namespaces,
    "Redis": _redis,
    "image": _image,
    "templates": _templates,
    "runner version": _runner_version,
    "quarantine": _fleet,
    "secrets": _secret_files,
    "GitHub App": _github,
    "clock": _clock,
    "disk": _disk,
    "copies of checkpoints": _copies,
}
