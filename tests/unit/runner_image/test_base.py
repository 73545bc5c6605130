from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from runner_image import base
from runner_image.base import KEPT_S, base_key, drop_old, make_base
from runner_image.machine import AptSource, MachineConfig
from runner_image.recipe import Recipe, make_recipe

SOURCE = AptSource("http://mirror.example/debian", "trixie", "main", "https://mirror.example/debian")


def recipe(**changes: object) -> Recipe:
    whole = make_recipe(MachineConfig((SOURCE,)), runner_sha256="a" * 64, runner_version="1")
    return msgspec.structs.replace(whole, **changes)


def test_a_base_serves_every_runner_and_file_of_ours() -> None:
    assert base_key(recipe()) == base_key(
        recipe(runner_sha256="b" * 64, runner_version="2", files={}, cmdline="", builder="")
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"suite": "forky"},
        {"architecture": "arm64"},
        {"packages": ("git",)},
        {"machine": MachineConfig((msgspec.structs.replace(SOURCE, uri="http://other.example/debian"),))},
        {"machine": MachineConfig((SOURCE,), {"Acquire::Check-Date": "false"})},
    ],
)
def test_what_debian_is_installed_from_makes_another_base(changes: dict[str, object]) -> None:
    assert base_key(recipe(**changes)) != base_key(recipe())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The tarballs that were asked for; nothing is installed or unpacked."""
    asked: list[Path] = []

    def bootstrap(tarball: Path, _recipe: Recipe) -> None:
        asked.append(tarball)
        tarball.touch()

    monkeypatch.setattr(base, "_bootstrap", bootstrap)
    monkeypatch.setattr(base, "run", lambda *_args, **_kwargs: "")
    return asked


def make(folder: Path, *, fresh: bool = False) -> list[str]:
    steps: list[str] = []
    work = folder / f"work{len(list(folder.iterdir()))}"
    work.mkdir()
    make_base(work / "root", recipe(), folder / "bases", fresh=fresh, progress=steps.append)
    return steps


def test_a_base_is_made_once_a_day_and_when_asked_for(tmp_path: Path, made: list[Path]) -> None:
    make(tmp_path)
    assert make(tmp_path) == ["Using Debian trixie as it was installed 0 min ago"]
    assert len(made) == 1
    make(tmp_path, fresh=True)
    assert len(made) == 2
    (kept,) = (tmp_path / "bases").iterdir()
    os.utime(kept, (1, 1))
    make(tmp_path)
    assert len(made) == 3


def test_a_base_of_yesterday_is_dropped(tmp_path: Path) -> None:
    for name, age in (("old.tar", KEPT_S + 60), ("new.tar", 60)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (10 * KEPT_S - age,) * 2)
    drop_old(tmp_path, 10 * KEPT_S)
    assert [path.name for path in tmp_path.iterdir()] == ["new.tar"]
