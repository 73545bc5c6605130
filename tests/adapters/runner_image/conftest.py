"""An image with a stand-in for the runner in it, kept between runs outside of the checkout: building it takes a minute."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from runner_image import store
from runner_image.build import build_image
from runner_image.store import Image
from runner_image.tarball import RunnerSource

CACHE = Path(os.environ.get("IRONCD_TEST_CACHE", "/var/cache/ironcd-test"))
LISTENER = Path(__file__).parent / "listener.py"
PROGRAMS = ("mmdebstrap", "mke2fs", "qemu-img", "qemu-system-x86_64")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    why = f"needs {', '.join(missing)}" if missing else "needs root" if os.geteuid() else ""
    for item in items:
        if why and item.path.parent == Path(__file__).parent and item.get_closest_marker("real"):
            item.add_marker(pytest.mark.skip(reason=why))


def runner_tarball(folder: Path) -> RunnerSource:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        data = LISTENER.read_bytes()
        entry = tarfile.TarInfo("bin/Runner.Listener")
        entry.size, entry.mode = len(data), 0o755
        archive.addfile(entry, io.BytesIO(data))
    path = folder / "runner.tar.gz"
    path.write_bytes(gzip.compress(raw.getvalue(), mtime=0))
    return RunnerSource(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), "0.0.0-test")


@pytest.fixture(scope="session")
def runner_source(tmp_path_factory: pytest.TempPathFactory) -> RunnerSource:
    return runner_tarball(tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="session")
def image(runner_source: RunnerSource) -> Image:
    built = build_image(CACHE, runner_source, name="boot-test")
    store.prune(CACHE, CACHE / "disks")
    return built
