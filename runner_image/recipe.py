"""What an image is made of.  Its digest names the image: the same recipe is the same image, anything else is another.

The digest covers everything that we put in: packages and where they come from, the settings of the package managers in
the image, the runner, every file of ours, and the code that puts them together.  It doesn't cover which versions of
the packages the archive had on that day: `packages.json` beside the image says that, and ``--rebuild`` takes new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from runner_image.machine import MachineConfig

SUITE = "trixie"
ARCHITECTURE = "amd64"
HERE = Path(__file__).parent

_CMDLINE = (
    "root=/dev/vda",
    "rw",
    "console=ttyS0",
    "loglevel=4",
    "panic=1",  # ends the machine (the host destroys it on a reboot) instead of leaving it until its deadline
    "mitigations=off",  # they part a job from itself: it is root in here, and the wall is outside
    "net.ifnames=0",  # so that the link has a name that `tree` can say something about
    "lsm=landlock,lockdown,yama,integrity,apparmor",  # Debian's list without bpf, which systemd would load programs for
    "systemd.show_status=error",  # units that fail are shown; the rest costs more time than all else
    "TERM=dumb",  # systemd asks any other terminal for its size and waits for an answer
)
CMDLINE = " ".join(_CMDLINE)
"""How the image's kernel wants to be started."""

SYSTEM_PACKAGES = (
    "linux-image-cloud-amd64",
    "busybox-static",  # the whole of the initrd
    "systemd",
    "systemd-sysv",
    "dbus",  # what a job's user asks systemd by
    "libnss-myhostname",  # sudo looks the machine's own name up
    "udev",
    "cloud-init",
    "netcat-openbsd",
    "iproute2",
    "kmod",
    "procps",
)
JOB_PACKAGES = (
    "ca-certificates",
    "curl",
    "dnsutils",
    "git",
    "gpg",
    "iputils-ping",
    "jq",
    "less",
    "openssh-client",
    "openssl",
    "python3",
    "python3-pip",
    "python3-venv",
    "rsync",
    "socat",
    "sudo",
    "tar",
    "unzip",
    "wget",
    "xz-utils",
    "zip",
    "zstd",
)
RUNNER_PACKAGES = ("libicu76", "libkrb5-3", "libssl3t64", "zlib1g")
"""What GitHub's runner needs of its system (its ``installdependencies.sh``)."""

ENABLED_UNITS = (
    "ironcd-guest.service",
    "systemd-networkd.service",
    "var-lib-cloud.mount",
)
MASKED_UNITS = (
    # Nobody logs in, and nothing is kept: a machine runs one job.
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    "getty.target",
    "getty-static.service",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-logind.service",
    "systemd-user-sessions.service",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-journal-flush.service",
    "systemd-random-seed.service",
    "systemd-networkd-persistent-storage.service",
    "systemd-pstore.service",
    "cloud-init-hotplugd.socket",
    # The guest's own process starts cloud-init's stages, and looks itself whether the link is up (`guest.stages`).
    "cloud-init-local.service",
    "cloud-init-network.service",
    "cloud-config.service",
    "cloud-final.service",
    "systemd-networkd-wait-online.service",
    # Each is a process more at boot, for what no job of ours finds missing.
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "proc-sys-fs-binfmt_misc.mount",
    "systemd-binfmt.service",
    "systemd-hostnamed.socket",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-modules-load.service",
    "systemd-network-generator.service",
    "systemd-sysusers.service",
    "systemd-udev-load-credentials.service",
    "systemd-update-done.service",
    "ldconfig.service",
)


class Reordered(msgspec.Struct, frozen=True):
    """A unit of Debian's that starts earlier or later in here: without ``freed_of`` in its order, and after ``after``."""

    unit: str
    freed_of: tuple[str, ...]
    after: str = ""


REORDERED_UNITS = (
    # Runs already when a template is taken; it has nothing to configure before cloud-init has written it down.
    Reordered("systemd-networkd.service", ("network-pre.target",)),
    # Remember the machine's id, so they start behind the gate; no job waits for them, so they start once the runner listens.
    Reordered("systemd-journald.service", ("sysinit.target",), "ironcd-guest.service"),
    Reordered("dbus.socket", (), "ironcd-guest.service"),
    Reordered("systemd-tmpfiles-setup.service", ("systemd-journald.service",)),
)

UNUSED_GENERATORS = (
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-tpm2-generator",
    "systemd-veritysetup-generator",
)
"""Programs that systemd runs before anything else, to make units out of what doesn't exist here."""

RUNNER_USER = "runner"
RUNNER_UID = 1001
RUNNER_FOLDER = "opt/actions-runner"
HOOK = "/usr/lib/ironcd/job-started.sh"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Recipe(msgspec.Struct, frozen=True):
    """All inputs of a build.  ``files`` maps the path of each file of ours to the SHA-256 of its content."""

    suite: str
    architecture: str
    packages: tuple[str, ...]
    enabled_units: tuple[str, ...]
    masked_units: tuple[str, ...]
    reordered_units: tuple[Reordered, ...]
    unused_generators: tuple[str, ...]
    machine: MachineConfig
    runner_sha256: str
    runner_version: str
    cmdline: str
    files: dict[str, str]
    builder: str

    @property
    def digest(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


def make_recipe(
    machine: MachineConfig, *, runner_sha256: str, runner_version: str, extra_packages: Sequence[str] = ()
) -> Recipe:
    return Recipe(
        suite=SUITE,
        architecture=ARCHITECTURE,
        packages=tuple(sorted({*SYSTEM_PACKAGES, *JOB_PACKAGES, *RUNNER_PACKAGES, *extra_packages})),
        enabled_units=ENABLED_UNITS,
        masked_units=MASKED_UNITS,
        reordered_units=REORDERED_UNITS,
        unused_generators=UNUSED_GENERATORS,
        machine=machine,
        runner_sha256=runner_sha256,
        runner_version=runner_version,
        cmdline=CMDLINE,
        files=own_digests(),
        builder=_builder(),
    )


def own_digests() -> dict[str, str]:
    """The path of each file of ours to the SHA-256 of its content."""
    return {path.relative_to(HERE).as_posix(): _sha256(path) for path in own_files()}


def own_files() -> Iterator[Path]:
    """The files that go into the image or its initrd, in a fixed order."""
    for folder in ("guest", "initrd", "tree"):
        for path in sorted((HERE / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def _builder() -> str:
    """The code that decides what an image looks like; a change in it makes another image."""
    whole = hashlib.sha256()
    for name in ("base.py", "rootfs.py", "initrd.py", "disk.py"):
        whole.update((HERE / name).read_bytes())
    return whole.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
