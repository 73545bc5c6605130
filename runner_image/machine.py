"""How the build machine reaches its packages.  The image is built from there, and is set up to do the same.

So a company's mirror works with no setting of ours, and no package host is named anywhere in this code.  Credentials
stay behind: an index URL with a password in it isn't taken over, and neither is a proxy (a VM can't reach it).
"""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.system.process import CommandFailed, run

APT_FIELDS = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
_POCKETS = ("", "-updates", "-security")
_KEPT_OPTIONS = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")
_PIP_KEYS = ("index-url", "extra-index-url", "trusted-host")


class AptSource(msgspec.Struct, frozen=True, order=True):
    """One suite of Debian's archive, as the build machine reaches it (``uri``) and as the image will (``guest_uri``)."""

    uri: str
    suite: str
    component: str
    guest_uri: str


class MachineConfig(msgspec.Struct, frozen=True):
    """``apt_options`` and ``pip`` hold what differs from the package managers' own defaults."""

    apt: tuple[AptSource, ...]
    apt_options: dict[str, str] = {}
    pip: dict[str, str] = {}
    npm_registry: str = ""
    """Empty for npm's own default."""


def read_machine(suite: str) -> MachineConfig:
    """Read the configuration of this machine's apt, pip and npm for an image of ``suite``.

    Raises HostError (``apt-sources``) where apt knows no Debian archive.
    """
    codename = read_os_release(Path("/etc/os-release").read_text(encoding="utf-8")).get("VERSION_CODENAME", "")
    sources: list[AptSource] = []
    for lists in ((), ("--no-release-info",)):  # a machine that never ran `apt-get update` shows its sources only so
        listed = _apt("indextargets", *lists, "--format", APT_FIELDS, "Created-By: Packages")
        sources = sources or debian_sources(listed, codename=codename, suite=suite)
    if not any(source.suite == suite for source in sources):
        raise HostError(
            "this machine's apt knows no Debian archive to build the image from",
            code="apt-sources",
            remedy="Configure Debian's archive or a mirror of it in /etc/apt/sources.list.d, and run `apt-get update`.",
        )
    return MachineConfig(
        apt=tuple(sorted(_with_guest_uris(sources))),
        apt_options=apt_options(_apt_config()),
        pip=pip_settings(_pip_files(), os.environ),
        npm_registry=_npm_registry(),
    )


def debian_sources(listed: str, *, codename: str, suite: str) -> list[AptSource]:
    """The lines of ``apt-get indextargets`` (in `APT_FIELDS`) that are Debian's own archive, turned to ``suite``.

    Others may also call their suites by Debian's codename, so the archive's stated origin counts.  It is empty, or its
    placeholder, where the lists were never fetched.
    """
    pockets = {name + pocket: suite + pocket for name in (codename, "stable", suite) for pocket in _POCKETS if name}
    found = []
    for line in listed.splitlines():
        uri, release, component, origin = line.split("|")
        if component != "main" or release not in pockets or origin not in {"Debian", "", "$(ORIGIN)"}:
            continue
        place = _mirror(uri).rstrip("/")
        source = AptSource(uri=place, suite=pockets[release], component=component, guest_uri=place)
        if source not in found:
            found.append(source)
    return found


def apt_options(dump: str) -> dict[str, str]:
    """The options of ``apt-config dump`` that the image needs as well."""
    options = {}
    for line in dump.splitlines():
        name, _, value = line.partition(" ")
        if name in _KEPT_OPTIONS:
            options[name] = value.rstrip(";").strip('"')
    return options


def apt_proxies(dump: str) -> dict[str, str]:
    """Proxies that the build machine's apt uses; for the build only, and in no digest."""
    proxies = {}
    for line in dump.splitlines():
        name, _, value = line.partition(" ")
        parts = name.split("::")
        if parts[0] == "Acquire" and len(parts) >= 3 and parts[2].lower().startswith("proxy"):
            proxies[name] = value.rstrip(";").strip('"')
    return proxies


def machine_apt_proxies() -> dict[str, str]:
    return apt_proxies(_apt_config())


def pip_settings(files: Iterable[str], env: Mapping[str, str]) -> dict[str, str]:
    """What pip's configuration files (their texts, later ones win) and environment say about indexes.

    Only addresses that a VM can use are kept: not ``file:``, and none with credentials in it.
    """
    settings: dict[str, str] = {}
    for text in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= {key: value for key, value in parser.items(section) if key in _PIP_KEYS}
    settings |= {key: env[name] for key in _PIP_KEYS if (name := "PIP_" + key.upper().replace("-", "_")) in env}
    kept = {}
    for key, value in settings.items():
        words = [word for word in value.split() if key == "trusted-host" or usable(word)]
        if words:
            kept[key] = " ".join(words)
    return kept


def usable(url: str) -> bool:
    """An http or https URL without credentials."""
    parts = urlsplit(url)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc


def read_os_release(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}


def _mirror(uri: str) -> str:
    """The first entry of a ``mirror+file:`` list; any other address as it is."""
    if not uri.startswith("mirror+file:"):
        return uri
    text = Path("/" + uri.removeprefix("mirror+file:").lstrip("/")).read_text(encoding="utf-8")
    entries = [line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not entries:
        raise HostError(f"the mirror list {uri} is empty", code="apt-sources", remedy="Put a mirror into it.")
    return entries[0]


def _with_guest_uris(sources: Iterable[AptSource]) -> list[AptSource]:
    """A VM gets out by TLS only, so a mirror that also answers by https is put into the image with that."""
    secure: dict[str, str] = {}
    for source in sources:
        if source.uri not in secure:
            candidate = "https" + source.uri.removeprefix("http") if source.uri.startswith("http:") else source.uri
            works = candidate == source.uri or _apt_reaches(f"{candidate}/dists/{source.suite}/InRelease")
            secure[source.uri] = candidate if works else source.uri
    return [msgspec.structs.replace(source, guest_uri=secure[source.uri]) for source in sources]


def _apt_reaches(url: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="ironcd-apt-") as folder:
        try:
            run(["/usr/lib/apt/apt-helper", "-oAcquire::Retries=0", "download-file", url, f"{folder}/file"])
        except CommandFailed:
            return False
    return True


def _apt(*arguments: str) -> str:
    try:
        return run(["apt-get", *arguments])
    except CommandFailed as error:
        raise HostError(
            f"apt can't be asked for its sources: {error.message}",
            code="apt-sources",
            remedy="An image is built on Debian 12 or 13, with apt.",
        ) from error


def _apt_config() -> str:
    return run(["apt-config", "dump"])


def _pip_files() -> list[str]:
    """Pip's own order: for all users first, then for this one."""
    home = Path.home()
    places = (
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
    )
    return [place.read_text(encoding="utf-8") for place in places if place.is_file()]


def _npm_registry() -> str:
    """Of this machine's npm, where it has one; empty where it has none or the address can't be used in a VM."""
    if shutil.which("npm") is None:
        return ""
    env = {name: value for name, value in os.environ.items() if name.lower() == "npm_config_registry"}
    try:
        registry = run(["npm", "config", "get", "registry"], env=env, cwd="/").strip()
    except CommandFailed:
        return ""
    return registry if usable(registry) else ""
