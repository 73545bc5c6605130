"""Debian itself, by mmdebstrap, before anything of ours is in it.

That is most of a build's time and the same for every runner, so the result is kept for a day: another runner, or a
change in one of our files, takes seconds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.system.process import CommandFailed, run
from runner_image.machine import AptSource, machine_apt_proxies
from runner_image.recipe import HERE, PATH, Recipe

KEPT_S = 24 * 3600.0
_BOOTSTRAP_S = 1800.0
_UNPACK_S = 300.0
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_DPKG = HERE / "tree/etc/dpkg/dpkg.cfg.d/ironcd"


def make_base(root: Path, recipe: Recipe, bases: Path, *, fresh: bool, progress: Callable[[str], None]) -> None:
    """Lay Debian with the recipe's packages out in ``root``; ``fresh`` takes none that was kept in ``bases``."""
    kept = bases / f"{base_key(recipe)}.tar"
    now = time.time()
    if fresh or not kept.exists() or now - kept.stat().st_mtime > KEPT_S:
        progress(f"Installing Debian {recipe.suite} ({len(recipe.packages)} packages and what they need)")
        made = root.with_suffix(".tar")
        _bootstrap(made, recipe)
        bases.mkdir(exist_ok=True)
        made.replace(kept)
    else:
        progress(f"Using Debian {recipe.suite} as it was installed {int(now - kept.stat().st_mtime) // 60} min ago")
    root.mkdir()
    run(
        ["tar", "-xf", str(kept), "-C", str(root), "--numeric-owner", "--xattrs", "--xattrs-include=*", "-p"],
        timeout_s=_UNPACK_S,
    )
    drop_old(bases, now)


def drop_old(bases: Path, now: float) -> None:
    for kept in bases.glob("*.tar"):
        if now - kept.stat().st_mtime > KEPT_S:
            kept.unlink()


def base_key(recipe: Recipe) -> str:
    """What a base depends on, as 64 hexadecimal digits."""
    apt = [(source.uri, source.suite, source.component) for source in recipe.machine.apt]
    inputs = (recipe.suite, recipe.architecture, recipe.packages, apt, recipe.machine.apt_options, _DPKG.read_text())
    return hashlib.sha256(msgspec.json.encode(inputs, order="deterministic")).hexdigest()


def sources_file(sources: Sequence[AptSource], *, guest: bool) -> str:
    """In apt's deb822 format; with ``guest`` the addresses that a VM uses."""
    return "\n".join(
        f"Types: deb\nURIs: {source.guest_uri if guest else source.uri}\nSuites: {source.suite}\n"
        f"Components: {source.component}\nSigned-By: {_KEYRING}\n"
        for source in sources
    )


def _bootstrap(made: Path, recipe: Recipe) -> None:
    """Write the tarball ``made``.

    The whole of it runs in a mount and a process namespace of its own and dies with us: a build that was killed leaves
    neither a process nor a mount behind.
    """
    configuration = made.with_suffix(".apt")
    configuration.write_text(_build_configuration(recipe), encoding="utf-8")
    sources = made.with_suffix(".sources")
    sources.write_text(sources_file(recipe.machine.apt, guest=False), encoding="utf-8")
    place = made.with_suffix(".work")
    place.mkdir()
    shell = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [
        *("mmdebstrap", "--mode=root", "--variant=apt", "--format=tar", "--quiet"),
        f"--architectures={recipe.architecture}",
        f"--include={','.join(recipe.packages)}",
        f"--aptopt={configuration}",
        f"--dpkgopt={_DPKG}",
        *(recipe.suite, str(made), str(sources)),
    ]
    try:
        # linux-image's hook makes no initrd with INITRD=No: ours is made in its place.
        env = {"PATH": PATH, "INITRD": "No", "TMPDIR": str(place)}
        run([*shell, *command], env=env, timeout_s=_BOOTSTRAP_S, cwd="/")
    except CommandFailed as error:
        raise HostError(
            f"Debian {recipe.suite} can't be installed into an image: {error.message}",
            code="image-bootstrap",
            remedy="Check that the machine's package mirror is reachable and has that suite; install `mmdebstrap` and an "
            "up-to-date `debian-archive-keyring`.",
        ) from error


def _build_configuration(recipe: Recipe) -> str:
    options = {**recipe.machine.apt_options, **machine_apt_proxies(), "APT::Install-Recommends": "false"}
    return "".join(f'{name} "{value}";\n' for name, value in options.items())
