"""Builds an image, or finds that it is there already.  Each step has a name that a person can be shown."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from orchestrator.core.errors import HostError
from runner_image import store
from runner_image.base import make_base
from runner_image.disk import make_disk
from runner_image.initrd import make_initrd
from runner_image.machine import read_machine
from runner_image.recipe import HERE, SUITE, Recipe, make_recipe, own_digests
from runner_image.rootfs import Facts, customise, kernel_of, read_facts
from runner_image.store import Image, Manifest
from runner_image.tarball import RunnerSource, fetch

_PROGRAMS = ("mmdebstrap", "mke2fs", "qemu-img", "chroot", "unshare", "setpriv")
_FREE_BYTES = 4 << 30
_OLDEST_CLOUD_INIT = (24, 3)

Progress = Callable[[str], None]
"""Called with what is done next."""


def build_image(
    cache_dir: Path,
    runner: RunnerSource,
    *,
    name: str = "default",
    extra_packages: Sequence[str] = (),
    rebuild: bool = False,
    progress: Progress = lambda _step: None,
) -> Image:
    """Build the image for ``runner`` and let ``name`` mean it.

    An image of the same recipe is used as it is, unless ``rebuild`` asks for the packages that the archive has now.
    Raises HostError or ConfigurationError; nothing half-made is left then.
    """
    store.check_name(name)
    check_machine(cache_dir)
    progress("Reading how this machine reaches its packages")
    machine = read_machine(SUITE)
    progress(f"Fetching the runner {runner.version}")
    tarball = fetch(runner, cache_dir)
    recipe = make_recipe(
        machine, runner_sha256=runner.sha256.lower(), runner_version=runner.version, extra_packages=extra_packages
    )
    digest = recipe.digest
    with store.building(cache_dir, waiting=lambda: progress("Waiting for another build to end")):
        there = store.read_image(cache_dir / "images" / digest, name)
        if there is None or rebuild:
            _build(cache_dir, recipe, name, tarball, rebuild=rebuild, progress=progress)
        else:
            progress(f"Using image {digest[:12]}, which is there already")
        store.point(cache_dir, name, digest)
    return store.find_image(cache_dir, name)


def check_machine(cache_dir: Path) -> None:
    """Raises HostError where an image can't be built here: not root, a program missing, no space."""
    if os.geteuid() != 0:
        raise HostError("an image is built as root", code="image-root", remedy="Run the command with sudo.")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise HostError(
            f"programs that build an image are missing: {', '.join(missing)}",
            code="image-programs",
            remedy="apt-get install mmdebstrap e2fsprogs qemu-utils util-linux",
        )
    free = shutil.disk_usage(store.images_folder(cache_dir)).free
    if free < _FREE_BYTES:
        raise HostError(
            f"{cache_dir} has {free >> 20} MiB free; building an image takes {_FREE_BYTES >> 20} MiB",
            code="image-space",
            remedy="Free some space, or run `ironcd image prune`.",
        )


def _build(cache_dir: Path, recipe: Recipe, name: str, tarball: Path, *, rebuild: bool, progress: Progress) -> None:
    with store.workplace(cache_dir) as work:
        root, built = work / "root", work / "image"
        built.mkdir()
        make_base(root, recipe, cache_dir / "bases", fresh=rebuild, progress=progress)
        progress("Adding the runner, the guest's own process and its settings")
        customise(root, recipe, recipe.digest, tarball)
        progress("Reading packages and presets off the image")
        facts = read_facts(root, recipe)
        _check_cloud_init(facts.cloud_init)
        progress("Writing kernel, initrd and disk")
        kernel = kernel_of(root)
        shutil.copyfile(root / f"boot/vmlinuz-{kernel}", built / "vmlinuz")
        initrd = make_initrd(HERE / "initrd/init", _busybox(root), root / "usr/lib/modules" / kernel)
        (built / "initrd").write_bytes(initrd)
        make_disk(root, built / "disk.qcow2")
        _describe(built, recipe, name, facts)
        if own_digests() != recipe.files:
            raise HostError(
                "files of the image were changed while it was built",
                code="image-recipe-changed",
                remedy="Run the command again.",
            )
        store.publish(cache_dir, built, recipe.digest)


def _describe(built: Path, recipe: Recipe, name: str, facts: Facts) -> None:
    manifest = Manifest(
        name=name,
        digest=recipe.digest,
        runner_version=recipe.runner_version,
        cloud_init=facts.cloud_init,
        kernel=facts.kernel,
        presets=facts.presets,
        created=datetime.fromtimestamp(int(time.time()), UTC).isoformat(),
        packages=len(facts.packages),
        cmdline=recipe.cmdline,
        runner_sha256=recipe.runner_sha256,
    )
    (built / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    (built / "packages.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts.packages), indent=1) + b"\n")


def _check_cloud_init(version: str) -> None:
    """Before 24.3 each stage is a process of its own, whose units have other names."""
    match = re.match(r"(\d+)\.(\d+)", version)
    upstream = (int(match[1]), int(match[2])) if match else (0, 0)
    if upstream < _OLDEST_CLOUD_INIT:
        raise HostError(
            f"the archive has cloud-init {version}; an image needs 24.3 or newer",
            code="image-cloud-init",
            remedy=f"Use a mirror that has Debian {SUITE}.",
        )


def _busybox(root: Path) -> Path:
    return (root / "usr/bin/busybox").resolve()
