"""What makes cloud-init's process wait loaded: it may fail, and then nothing is changed; and it is handed on to nobody."""

from __future__ import annotations

import gc
import os
import runpy
import sys
from types import ModuleType, SimpleNamespace

import pytest

from runner_image.recipe import HERE

PRELOAD = HERE / "tree/usr/lib/ironcd/cloud-init/sitecustomize.py"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setenv("PYTHONPATH", str(PRELOAD.parent))
    monkeypatch.setitem(sys.modules, "selinux", None)
    monkeypatch.setattr(gc, "freeze", lambda: found.append("freeze"))
    monkeypatch.setattr(gc, "disable", lambda: found.append("disable"))
    return found


def test_without_cloud_init_nothing_is_set(calls, monkeypatch) -> None:
    yaml = ModuleType("yaml")
    monkeypatch.setitem(sys.modules, "yaml", yaml)
    runpy.run_path(str(PRELOAD))
    assert "PYTHONPATH" not in os.environ
    assert not hasattr(yaml, "SafeLoader")
    assert calls == []


def test_what_is_asked_once_is_asked_ahead(calls, monkeypatch) -> None:
    yaml = SimpleNamespace(CSafeLoader="in C", SafeLoader="in Python")
    netinfo = SimpleNamespace(debug_info=None)
    util = SimpleNamespace(system_info=lambda: calls.append("system"), is_container=lambda: calls.append("container"))
    for name, module in {"yaml": yaml, "cloudinit.netinfo": netinfo, "cloudinit.util": util}.items():
        monkeypatch.setitem(sys.modules, name, module)
    runpy.run_path(str(PRELOAD))
    assert "PYTHONPATH" not in os.environ
    assert calls == ["system", "container", "freeze", "disable"]
    assert yaml.SafeLoader == "in C"
    assert netinfo.debug_info(prefix="ci-info: ") == "ci-info: not listed"
