from __future__ import annotations

import struct

import pytest

from orchestrator.core.settings import HostSettings
from orchestrator.host import accelerator
from orchestrator.host.accelerator import choose, device_problem, with_group


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "KVM", device)
    monkeypatch.setattr(accelerator, "run", lambda _argv, **_options: "QEMU 9\n")
    made = tmp_path / "vmlinuz"
    made.write_bytes(b"kernel")
    return made


def _settings(**changes):
    return HostSettings(name="h", **changes)


@pytest.mark.parametrize(
    ("setting", "allowed", "works", "chosen", "problem"),
    [
        ("auto", False, True, "kvm", None),
        ("auto", False, False, "", "emulation-refused"),
        ("auto", True, False, "tcg", None),
        ("kvm", False, True, "kvm", None),
        ("kvm", True, False, "", "kvm-unusable"),
        ("tcg", True, True, "tcg", None),
        ("tcg", False, True, "", "emulation-refused"),
    ],
)
def test_which_accelerator(kernel, tmp_path, setting, allowed, works, chosen, problem):
    settings = _settings(accelerator=setting, allow_emulation=allowed)
    choice = choose(settings, kernel, cache=tmp_path, probe=lambda _kernel: works)
    assert choice.accelerator == chosen
    assert (choice.problem.code if choice.problem else None) == problem
    assert not choice.problem or choice.problem.remedy


def test_the_answer_is_kept_until_something_changes(kernel, tmp_path):
    asked = []

    def probe(path):
        asked.append(path)
        return True

    for _ in range(3):
        choose(_settings(), kernel, cache=tmp_path, probe=probe)
    assert len(asked) == 1
    kernel.write_bytes(b"another kernel")
    choose(_settings(), kernel, cache=tmp_path, probe=probe)
    assert len(asked) == 2


def test_without_a_device_nothing_is_tried(kernel, tmp_path):
    accelerator.KVM.unlink()
    choice = choose(_settings(allow_emulation=True), kernel, cache=tmp_path, probe=lambda _kernel: pytest.fail("tried"))
    assert choice.accelerator == "tcg"


def test_a_device_that_qemu_cant_open_is_a_problem_with_a_remedy(tmp_path):
    device = tmp_path / "kvm"
    assert device_problem(device) is None
    device.touch()
    device.chmod(0o600)
    problem = device_problem(device)
    assert problem.code == "kvm-mode"
    assert "chgrp kvm" in problem.remedy
    device.chmod(0o666)
    assert device_problem(device) is None


NOBODY = 0xFFFFFFFF


def _entries(acl: bytes) -> list[tuple[int, int, int]]:
    return list(struct.iter_unpack("<HHI", acl[4:]))


def test_a_group_is_added_to_an_access_list_and_others_stay():
    plain = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, perm, NOBODY) for tag, perm in ((1, 6), (4, 6), (32, 0))
    )
    once = with_group(plain, 64055)
    assert _entries(once) == [(1, 6, NOBODY), (4, 6, NOBODY), (8, 6, 64055), (16, 6, NOBODY), (32, 0, NOBODY)]
    assert with_group(once, 64055) == once
    assert (8, 6, 100) in _entries(with_group(once, 100))
    assert (8, 6, 64055) in _entries(with_group(once, 100))
