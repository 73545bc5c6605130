"""Our part of the image's root file system, laid over Debian.  cloud-init stays as Debian ships it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import msgspec

from orchestrator.system.process import CommandFailed, run
from runner_image.base import sources_file
from runner_image.presets import read_presets
from runner_image.recipe import HERE, HOOK, PATH, RUNNER_FOLDER, RUNNER_UID, RUNNER_USER, Recipe, Reordered, own_files
from runner_image.tarball import unpack

_EXECUTABLE = frozenset({"guest/ironcd-guest", "guest/job-started.sh"})
_MODES = {"tree/etc/sudoers.d/ironcd": 0o440}


class Package(msgspec.Struct, frozen=True):
    """An installed Debian package.  ``licences`` as its copyright file names them; empty where that isn't in the
    machine-readable format.
    """

    name: str
    version: str
    source: str
    licences: tuple[str, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """Read in the finished file system."""

    cloud_init: str
    kernel: str
    presets: dict[str, tuple[str, ...]]
    packages: tuple[Package, ...]


def customise(root: Path, recipe: Recipe, digest: str, tarball: Path) -> None:
    """Our files, the runner's user, the runner, the units, and the package managers' settings."""
    _clean(root)
    _copy_own_files(root)
    _configure_packages(root, recipe)
    _chroot(
        root, "useradd", "--create-home", "--uid", str(RUNNER_UID), "--shell", "/bin/bash", "--user-group", RUNNER_USER
    )
    _chroot(root, "usermod", "--append", "--groups", "adm,sudo", RUNNER_USER)
    runner = root / RUNNER_FOLDER
    runner.mkdir(parents=True)
    os.chown(runner, RUNNER_UID, RUNNER_UID)
    unpack(tarball, root, RUNNER_FOLDER, RUNNER_USER)
    _write(runner / ".env", _env_file(recipe))
    _write(runner / ".path", PATH)
    _write(runner / ".setup_info", _setup_info(root, recipe, digest))
    # No service manager runs in there, so this only makes links.
    _chroot(root, "systemctl", "--quiet", "enable", *recipe.enabled_units)
    _chroot(root, "systemctl", "--quiet", "mask", *recipe.masked_units)
    for reordered in recipe.reordered_units:
        text = (root / "usr/lib/systemd/system" / reordered.unit).read_text(encoding="utf-8")
        _write(root / "etc/systemd/system" / reordered.unit, reordered_unit(text, reordered))
    generators = root / "etc/systemd/system-generators"
    generators.mkdir()
    for name in recipe.unused_generators:
        (generators / name).symlink_to("/dev/null")
    facts = {"digest": digest, "cloud_init": version_of(root, "cloud-init"), "runner_version": recipe.runner_version}
    _write(root / "usr/lib/ironcd/image.json", json.dumps(facts) + "\n")
    _chroot(root, "python3", "-m", "compileall", "-q", "/usr/lib/ironcd/guest", "/usr/lib/ironcd/cloud-init")
    _compile_runner(root)


def _compile_runner(root: Path) -> None:
    """Compile what Python files a runner has, so that no job waits for that.  Nothing of it is run on this machine: that
    is why the runner's own ``warmup`` isn't, which for GitHub's would leave nothing on the disk anyway.
    """
    with contextlib.suppress(CommandFailed):  # a file for another Python doesn't compile, and needn't
        run(
            [
                "chroot",
                f"--userspec={RUNNER_USER}",
                str(root),
                "python3",
                "-m",
                "compileall",
                "-q",
                f"/{RUNNER_FOLDER}",
            ],
            env={"PATH": PATH},
            timeout_s=120,
        )


def reordered_unit(text: str, change: Reordered) -> str:
    """The unit ``text`` with another order.  A file in ``/etc`` stands for the whole unit: one can't take words out otherwise."""
    lines = []
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key in ("Before", "After"):
            words = [word for word in value.split() if word not in change.freed_of]
            if not words:
                continue
            line = f"{key}={' '.join(words)}"  # noqa: PLW2901 - the line as it is to be
        lines.append(line)
        if line == "[Unit]" and change.after:
            lines.append(f"After={change.after}")
    return "\n".join(lines) + "\n"


def read_facts(root: Path, recipe: Recipe) -> Facts:
    return Facts(
        cloud_init=version_of(root, "cloud-init"),
        kernel=kernel_of(root),
        presets=read_presets(root, recipe.machine.npm_registry),
        packages=packages_of(root),
    )


def version_of(root: Path, package: str) -> str:
    return _chroot(root, "dpkg-query", "--show", "--showformat=${Version}", package)


def kernel_of(root: Path) -> str:
    """The release of the one kernel in ``root``, as ``uname -r`` says it."""
    (found,) = (root / "usr/lib/modules").iterdir()
    return found.name


def packages_of(root: Path) -> tuple[Package, ...]:
    listed = _chroot(root, "dpkg-query", "--show", "--showformat=${Package}\t${Version}\t${source:Package}\n")
    found = []
    for line in sorted(listed.splitlines()):
        name, version, source = line.split("\t")
        found.append(Package(name, version, source, licences(root / "usr/share/doc" / name / "copyright")))
    return tuple(found)


def licences(copyright_file: Path) -> tuple[str, ...]:
    """The licence names in a machine-readable (DEP-5) copyright file; none for one in another format."""
    try:
        text = copyright_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    if not text.startswith("Format:"):
        return ()
    names = (line.removeprefix("License:").strip() for line in text.splitlines() if line.startswith("License:"))
    return tuple(sorted({name for name in names if name}))


def _clean(root: Path) -> None:
    """Take out what the build left, and what must be this machine's own."""
    for name in (
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/cloud/cloud.cfg.d/05_logging.cfg",  # ours is in `tree`
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "etc/resolv.conf",
        "var/log/apt/history.log",
        "var/log/apt/term.log",
        "var/log/dpkg.log",
    ):
        (root / name).unlink(missing_ok=True)
    for path in (root / "etc/apt/sources.list.d").iterdir():
        path.unlink()
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    _write(root / "etc/machine-id", "")  # empty: systemd makes one at boot
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    (root / "var/lib/dbus").mkdir(exist_ok=True)
    (root / "var/lib/dbus/machine-id").symlink_to("/etc/machine-id")
    _write(root / "etc/hostname", "ironcd\n")
    _write(root / "etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
    _write(root / "etc/resolv.conf", "")  # the guest's own process writes what cloud-init was told (`guest.network`)


def _copy_own_files(root: Path) -> None:
    for path in own_files():
        name = path.relative_to(HERE).as_posix()
        place = _place(name)
        if place is None:
            continue
        target = root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(_MODES.get(name, 0o755 if name in _EXECUTABLE else 0o644))
        os.chown(target, 0, 0)


def _place(name: str) -> str | None:
    """Where a file of ours goes in the image; None for the initrd's."""
    top, _, rest = name.partition("/")
    if top == "tree":
        return rest
    if top != "guest":
        return None
    if rest.endswith(".service"):
        return f"usr/lib/systemd/system/{rest}"
    return f"usr/lib/ironcd/guest/{rest}" if rest.endswith(".py") else f"usr/lib/ironcd/{rest}"


def _configure_packages(root: Path, recipe: Recipe) -> None:
    machine = recipe.machine
    _write(root / "etc/apt/sources.list.d/debian.sources", sources_file(machine.apt, guest=True))
    if machine.apt_options:
        lines = (f'{name} "{value}";\n' for name, value in machine.apt_options.items())
        _write(root / "etc/apt/apt.conf.d/91ironcd-mirror", "".join(lines))
    if machine.pip:
        lines = (f"{key} = {value}\n" for key, value in machine.pip.items())
        _write(root / "etc/pip.conf", "[global]\n" + "".join(lines))


def _env_file(recipe: Recipe) -> str:
    """Read by GitHub's runner at its start, and by our guest's process, which starts it."""
    env = {
        "LANG": "C.UTF-8",
        "PATH": PATH,
        "ImageOS": "debian13",
        "ACTIONS_RUNNER_HOOK_JOB_STARTED": HOOK,
        "NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt",  # Node has a list of its own and looks at no other
    }
    if recipe.machine.npm_registry:
        env["NPM_CONFIG_REGISTRY"] = recipe.machine.npm_registry
    return "".join(f"{name}={value}\n" for name, value in env.items())


def _setup_info(root: Path, recipe: Recipe, digest: str) -> str:
    """Shown by the runner in the step "Set up job"."""
    lines = (
        f"Image: {digest}",
        f"Debian: {recipe.suite}, kernel {kernel_of(root)}, cloud-init {version_of(root, 'cloud-init')}",
        "This machine runs this one job and is destroyed after it.",
        "It reaches what the egress policy of the organisation and the repository allows; every attempt is recorded.",
    )
    return json.dumps([{"group": "IronCD", "detail": "\n".join(lines)}]) + "\n"


def _chroot(root: Path, *argv: str) -> str:
    return run(["chroot", str(root), *argv], env={"PATH": PATH}, timeout_s=120)


def _write(path: Path, text: str) -> None:
    """A file of root's that all may read."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
