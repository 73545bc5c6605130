"""The demo's lab leaves nothing: not when it is closed, not when it fails half-way, and not when its process is killed."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core.errors import OperationalError
from orchestrator.surface.demo import lab as module
from orchestrator.surface.demo.lab import Lab, clear_dead, toml_of
from orchestrator.system import netns

pytestmark = pytest.mark.real
ENDS = ("-up", "-out", "-vm")


@pytest.fixture(autouse=True)
def _root_of_its_own(tmp_path, monkeypatch):
    """So that no other lab on this machine is looked at."""
    monkeypatch.setattr(module, "ROOT", tmp_path / "labs")


def left(prefix: str) -> list[str]:
    return [prefix + end for end in ENDS if netns.exists(prefix + end)]


def test_a_lab_has_a_simulator_and_a_configuration_and_is_gone_afterwards(tmp_path):
    prefix = f"icdt-{secrets.token_hex(3)}"
    with Lab(prefix, logs=tmp_path / "logs") as lab:
        assert lab.simulated("GET", "state")["org"] == "acme"
        assert lab.settings.github.api_url == lab.facts["api_url"]
        assert lab.settings.host_settings().netns == f"{prefix}-vm"
        assert lab.received() == []
        assert clear_dead() == [], "a lab in use was taken for a dead one"
        folder, pid = lab.folder, lab.pids["simulator"]
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert left(prefix) == []


def test_a_lab_that_fails_to_open_leaves_nothing(tmp_path, monkeypatch):
    prefix = f"icdt-{secrets.token_hex(3)}"

    def broken(_self):
        raise OperationalError("no", code="c", remedy="r")

    monkeypatch.setattr(Lab, "_configure", broken)
    lab = Lab(prefix, logs=tmp_path / "logs")
    with pytest.raises(OperationalError):
        lab.open()
    assert not lab.folder.exists()
    assert left(prefix) == []


def test_what_a_killed_lab_left_is_taken_away_by_the_next(tmp_path):
    prefix = f"icdt-{secrets.token_hex(3)}"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom orchestrator.surface.demo import lab\n"
        f"lab.ROOT = Path({str(module.ROOT)!r})\n"
        f"lab.Lab({prefix!r}, logs=Path({str(tmp_path / 'logs')!r})).open()\n"
        "print('open', flush=True)\ntime.sleep(600)\n"
    )
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        process.kill()
    assert clear_dead() == [prefix]
    assert not (module.ROOT / prefix).exists()
    assert left(prefix) == []


def test_settings_are_written_as_toml():
    import tomllib

    sections = {"a": {"s": 'q"\\', "n": 1, "b": True, "l": ["x", "y"]}, "classes.x": {"f": 1.5}}
    assert tomllib.loads(toml_of(sections)) == {"a": sections["a"], "classes": {"x": {"f": 1.5}}}
