"""The demo's image: the same recipe as any, with the simulator's runner in the place of GitHub's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.simulator.runner.tarball import runner_tarball
from runner_image.build import build_image
from runner_image.store import Image
from runner_image.tarball import RunnerSource

NAME = "simulated"
"""Not ``default``: an image with GitHub's runner on the same machine keeps its name."""


def ensure_image(cache: Path, progress: Callable[[str], None]) -> Image:
    """Build the image, or find that it is there."""
    content, digest, version = runner_tarball()
    with tempfile.TemporaryDirectory(prefix="ironcd-runner-") as folder:
        tarball = Path(folder) / "runner.tar.gz"
        tarball.write_bytes(content)
        source = RunnerSource(str(tarball), digest, version)
        return build_image(cache, source, name=NAME, progress=progress)
