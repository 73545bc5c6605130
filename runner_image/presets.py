"""The hosts that the package managers in an image talk to, read off these package managers themselves.

They become the presets ``apt``, ``pypi`` and ``node`` of this image, so that a policy that allows a preset allows
what the image really uses, a company's mirror included.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.system.process import CommandFailed, run

# pip's own constants say where it goes when nobody tells it otherwise, and where the files lie that its index names.
_ASK_PIP = """
from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI
settings = Configuration(isolated=False)
settings.load()
found = dict(settings.items())
index = found.get("global.index-url") or found.get("install.index-url") or PyPI.simple_url
print(index)
for key in ("global.extra-index-url", "install.extra-index-url"):
    print(found.get(key, ""))
if index.rstrip("/") == PyPI.simple_url.rstrip("/"):
    print("https://" + PyPI.file_storage_domain + "/")
"""


def read_presets(root: Path, npm_registry: str) -> dict[str, tuple[str, ...]]:
    """Ask the package managers in the image at ``root``; npm's registry is the build machine's where it has no npm."""
    # The image has no package lists yet, and apt names no source of which it has none, but for this.
    targets = ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"]
    apt = run(["chroot", str(root), *targets])
    pip = run(["chroot", str(root), "python3", "-c", _ASK_PIP])
    try:
        npm = run(["chroot", str(root), "npm", "config", "get", "registry"])
    except CommandFailed:
        npm = npm_registry
    return {"apt": hosts(apt.split()), "node": hosts(npm.split()), "pypi": hosts(pip.split())}


def hosts(urls: Iterable[str]) -> tuple[str, ...]:
    """The host names of ``urls``, each once, in order of the alphabet; what is no URL is passed over."""
    found = set()
    for url in urls:
        parts = urlsplit(url.removeprefix("mirror+"))
        if parts.scheme in {"http", "https"} and parts.hostname:
            found.add(parts.hostname.lower())
    return tuple(sorted(found))
