"""What makes a clone a machine of its own, as far as it needs no kernel: the rest is `tests/e2e/test_clones.py`."""

from __future__ import annotations

import re
import socket
from base64 import b64encode

import pytest

from runner_image.guest import gate, network
from runner_image.guest.stages import STAGES, Stages


def test_two_machines_get_two_ids(tmp_path, monkeypatch) -> None:
    bound = []
    monkeypatch.setattr(gate, "mount", lambda source, target, flags: bound.append((source, target)))
    found = []
    for name in ("one", "two"):
        machine, boot = tmp_path / f"{name}-machine", tmp_path / f"{name}-boot"
        machine.write_text("0" * 32 + "\n")
        gate.renew_ids(str(machine), str(boot))
        found += [machine.read_text(), boot.read_text()]
    assert len(set(found)) == 4
    assert all(re.fullmatch(r"[0-9a-f]{32}\n", text) for text in found[::2])
    assert all(
        re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\n", t) for t in found[1::2]
    )
    assert [target for _, target in bound] == [gate.BOOT_ID] * 2


def test_host_keys_of_the_template_are_gone_and_new_ones_asked_for(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(gate.subprocess, "run", lambda argv, **_: asked.append(argv))
    pattern = str(tmp_path / "ssh_host_*_key*")
    gate.renew_ssh_keys(pattern)
    assert asked == []  # an image without a server needs none
    for name in ("ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "sshd_config"):
        (tmp_path / name).write_text("x")
    gate.renew_ssh_keys(pattern)
    assert [path.name for path in tmp_path.iterdir()] == ["sshd_config"]
    assert asked == [["/usr/bin/ssh-keygen", "-q", "-A"]]


@pytest.mark.parametrize(
    "order",
    [
        {"now_ns": "soon", "random": b64encode(bytes(64)).decode()},
        {"now_ns": 5, "random": 7},
        {"now_ns": 5, "random": "not base64!"},
        {"now_ns": 5, "random": b64encode(bytes(8)).decode()},
    ],
)
def test_an_opening_line_that_can_not_be_used_leaves_the_gate_closed(order, monkeypatch) -> None:
    monkeypatch.setattr(gate, "set_clock", lambda _now_ns: None)
    with pytest.raises(ValueError, match=r"."):
        gate.open_gate(order)


@pytest.mark.parametrize("prepared", [False, True])
def test_time_and_randomness_are_made_good_at_the_opening_and_ids_only_once(prepared, monkeypatch) -> None:
    done = []
    for name in ("set_clock", "reseed", "renew_ids", "renew_ssh_keys", "forget_seed"):
        monkeypatch.setattr(gate, name, lambda *_, name=name: done.append(name))
    order = {"now_ns": 5, "random": b64encode(bytes(64)).decode()}
    if prepared:
        gate.prepare(order)
        assert done == ["set_clock", "reseed", "renew_ids", "renew_ssh_keys"]
        done.clear()
    gate.open_gate(order, prepared=prepared)
    ids = [] if prepared else ["renew_ids", "renew_ssh_keys"]
    assert done == ["set_clock", "reseed", *ids, "forget_seed"]


def test_the_seeds_drive_may_be_missing(tmp_path) -> None:
    gate.forget_seed(str(tmp_path / "sr0"))


def test_all_stages_are_asked_for_at_once_and_answer_in_their_order(tmp_path) -> None:
    stages = Stages(str(tmp_path))
    assert not stages.start()  # cloud-init isn't there yet
    theirs = {}
    for stage in STAGES:
        theirs[stage] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs[stage].bind(str(tmp_path / f"{stage}.sock"))
    assert stages.start()
    assert stages.start()
    for stage in STAGES:  # what cloudinit/socket.py does
        data, sender = theirs[stage].recvfrom(5)
        assert (data, sender) == (b"start", str(tmp_path / f"{stage}-return.sock"))
        theirs[stage].connect(sender)
        theirs[stage].sendall(b"echo 'Completed'; exit 0;")
        theirs[stage].close()
    assert [stages.read(descriptor) for descriptor in stages.waiting()] == list(STAGES)
    assert stages.done == list(STAGES)
    assert stages.waiting() == []


def test_resolvers_are_those_that_cloud_init_was_told(tmp_path) -> None:
    (tmp_path / "10-cloud-init-eth0.network").write_text("[Match]\nName=eth0\n[Network]\nDNS=10.201.0.0 10.0.0.53\n")
    target = tmp_path / "resolv.conf"
    target.symlink_to("nowhere/resolv.conf")
    network.name_resolvers(str(tmp_path / "10-cloud-init-*.network"), str(target))
    assert target.read_text() == "nameserver 10.201.0.0\nnameserver 10.0.0.53\n"
    assert not target.is_symlink()


def test_a_link_is_up_when_there_is_a_way_out(tmp_path) -> None:
    routes = tmp_path / "route"
    assert not network.is_up(str(routes))
    routes.write_text("Iface\tDestination\tGateway\neth0\t0000C90A\t00000000\n")
    assert not network.is_up(str(routes))
    routes.write_text("Iface\tDestination\tGateway\neth0\t00000000\t0000C90A\n")
    assert network.is_up(str(routes))
