"""Labels to classes."""

from __future__ import annotations

import pytest

from orchestrator.core.machine import MachineClass, match_labels

CLASSES = {
    "ironcd": MachineClass("ironcd", vcpus=2, memory_mib=4096),
    "ironcd-gpu": MachineClass("ironcd-gpu", vcpus=8, memory_mib=32768, gpus=1),
}


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (["ironcd"], "ironcd"),
        (["self-hosted", "linux", "x64", "ironcd"], "ironcd"),
        (["IronCD"], "ironcd"),
        (["ironcd", "ironcd-gpu"], "ironcd-gpu"),
        (["ironcd-4cpu-16gb"], "ironcd-4cpu-16gb"),
        (["ironcd", "run-17000000040"], "ironcd"),
        (["ironcd-gpu", "Run-17000000040-build_2"], "ironcd-gpu"),
    ],
)
def test_labels_that_we_serve(labels: list[str], name: str) -> None:
    match = match_labels(labels, CLASSES)
    assert match.ours
    assert match.machine is not None
    assert match.machine.name == name


def test_a_size_is_read_off_its_label() -> None:
    match = match_labels(["ironcd-4cpu-16gb"], CLASSES)
    assert match.machine is not None
    assert (match.machine.vcpus, match.machine.memory_mib) == (4, 16384)


@pytest.mark.parametrize("labels", [[], ["ubuntu-latest"], ["self-hosted", "k8s"], ["ironclad"]])
def test_labels_of_others(labels: list[str]) -> None:
    assert not match_labels(labels, CLASSES).ours


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["ironcd-gpuu"], "the nearest is 'ironcd-gpu'"),
        (["ironcd-0cpu-4gb"], "no class is called"),
        (["ironcd", "run-of-mine"], "'run-of-mine' isn't one that IronCD's runners have"),
        (["ironcd", "windows"], "'windows' isn't one that IronCD's runners have"),
        (["ironcd-gpu", "ironcd-2cpu-4gb"], "name two classes"),
    ],
)
def test_ours_but_not_to_be_served_says_why(labels: list[str], words: str) -> None:
    match = match_labels(labels, CLASSES)
    assert match.ours
    assert match.machine is None
    assert words in match.reason
