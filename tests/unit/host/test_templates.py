"""Templates: what they depend on, how far they are trusted, and what happens where one is missing, broken or too much."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from structlog.testing import capture_logs

from orchestrator.core.errors import HostError
from orchestrator.core.machine import MachineClass
from orchestrator.core.settings import HostSettings
from orchestrator.host import guest, template_build, template_key, templates
from orchestrator.host import template_files as files
from orchestrator.host.fakes import FakeGateway, FakeHypervisor, FakeTalk, FakeWall, FakeWires
from orchestrator.host.images import LocalImage, Manifest
from orchestrator.host.parts import Parts
from orchestrator.host.paths import host_paths, make_folders
from orchestrator.host.record import Records
from orchestrator.host.slots import Slots
from orchestrator.host.template_key import basis_of
from orchestrator.host.template_memory import SealedMemory, no_room, opens_read_only
from orchestrator.host.templates import Cold, Lease, Templates

MACHINE = MachineClass("ironcd", vcpus=1, memory_mib=2, disk_gib=1)
QCOW2 = b"QFI\xfb" + bytes(20) + (1 << 30).to_bytes(8, "big")


BOOTED_AT = 1e9 - 100.0
"""The host's, so that its two clocks aren't the same."""


class Host:
    """Parts with fakes, an image, and a guest that does what guests do at the gate."""

    def __init__(self, folder: Path) -> None:
        self.settings = HostSettings(
            "h1", state_dir=str(folder / "s"), cache_dir=str(folder / "c"), run_dir=str(folder / "r")
        )
        self.paths = host_paths(self.settings)
        make_folders(self.paths)
        self.now = 1e9
        self.hypervisor, self.talk, self.wires = FakeHypervisor(), FakeTalk(), FakeWires()
        self.parts = Parts(
            settings=self.settings,
            paths=self.paths,
            hypervisor=self.hypervisor,
            wall=FakeWall(),
            wires=self.wires,
            gateway=FakeGateway(self.paths.links),
            slots=Slots(self.settings.links_range),
            records=Records(self.paths.records),
            clock=lambda: self.now,
            uptime=lambda: self.now - BOOTED_AT,
            talk=self.talk,
            qemu_group=0,
        )
        self.templates = self.parts.templates = Templates(self.parts)
        self.room = True
        self.silent = False
        self.talk.on_order = self.answer
        self.image = make_image(self.paths.images)

    def answer(self, ulid: str, order: guest.Order) -> None:
        if isinstance(order, guest.Settle) and not self.silent:
            self.parts.reserved[ulid](guest.Settled())

    def turn(self) -> None:
        self.now += templates.LOOK_S
        self.templates.turn(self.parts.uptime(), lambda _machine: self.room)
        for listener in list(self.parts.reserved.values()):
            if not self.silent:
                listener(guest.Hello())
        time.sleep(0.01)

    def until(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert time.monotonic() < deadline, self.templates.observe()
            self.turn()

    def want(self, *machines: MachineClass) -> None:
        self.templates.want(machines or (MACHINE,))

    def states(self) -> list[str]:
        return [seen.state for seen in self.templates.observe()]

    def ready(self) -> Lease:
        self.want()
        self.until(lambda: self.states() == ["ready"])
        return self.templates.lease(MACHINE, self.image)

    def cold(self, machine: MachineClass = MACHINE) -> str:
        with pytest.raises(Cold) as cold:
            self.templates.lease(machine, self.image)
        return str(cold.value)


def make_image(folder: Path, name: str = "default") -> LocalImage:
    place = folder / "0123"
    place.mkdir(exist_ok=True)
    for file, content in (("disk.qcow2", QCOW2), ("vmlinuz", b"kernel"), ("initrd", b"initrd")):
        (place / file).write_bytes(content)
    manifest = Manifest(name, "0123", "2.336.0")
    (place / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    if not (folder / name).exists():
        (folder / name).symlink_to("0123")
    return LocalImage(manifest, place / "disk.qcow2", place / "vmlinuz", place / "initrd", 1 << 30)


@pytest.fixture(autouse=True)
def no_programs(monkeypatch) -> None:
    """`qemu-img` is the adapters' to try; who owns a file is root's to say."""
    monkeypatch.setattr(
        "orchestrator.host.template_build.make_overlay", lambda _backing, path, **_: path.write_bytes(QCOW2)
    )
    monkeypatch.setattr(os, "chown", lambda *_: None)
    monkeypatch.setattr(os, "fchown", lambda *_: None)


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path)
    yield made
    made.templates.close()


def test_the_key_covers_what_a_clone_depends_on(host, monkeypatch) -> None:
    def key(machine: MachineClass = MACHINE, kind: str = "qemu", hypervisor: str = "QEMU 7") -> str:
        return basis_of(machine, host.image, kind, hypervisor).key

    keys = {key(), key(hypervisor="QEMU 8"), key(kind="kvm")}
    keys |= {
        key(msgspec.structs.replace(MACHINE, **change)) for change in ({"vcpus": 2}, {"memory_mib": 4}, {"disk_gib": 2})
    }
    monkeypatch.setattr(template_key, "processor", lambda: "another one")
    keys.add(key(kind="kvm"))
    for release, version in (("another one", "#1"), ("another one", "#2, rebuilt")):
        monkeypatch.setattr(
            template_key.os, "uname", lambda it=(release, version): SimpleNamespace(release=it[0], version=it[1])
        )
        keys.add(key(kind="kvm"))
    monkeypatch.setattr(template_key, "domain_xml", lambda _spec: "<domain/>")
    keys.add(key())
    monkeypatch.undo()
    for file in (host.image.disk, host.image.kernel, host.image.initrd):
        rebuilt = file.with_name("rebuilt")
        rebuilt.write_bytes(file.read_bytes())
        rebuilt.replace(file)  # of the same recipe, as `image build --rebuild` leaves it
        keys.add(key())
    for change in ({"digest": "4567"}, {"cmdline": "quiet"}):
        image = msgspec.structs.replace(host.image, manifest=msgspec.structs.replace(host.image.manifest, **change))
        keys.add(basis_of(MACHINE, image, "qemu", "QEMU 7").key)
    assert len(keys) == 15
    assert key() == key(msgspec.structs.replace(MACHINE, name="other", lifetime_s=5, warm=3))


def test_whether_guests_can_nest_is_of_the_hosts_kernel(tmp_path) -> None:
    plain = template_key.host_kernel(tmp_path)
    setting = tmp_path / "kvm_intel" / "parameters" / "nested"
    setting.parent.mkdir(parents=True)
    setting.write_text("Y\n")
    assert template_key.host_kernel(tmp_path) == f"{plain} Y"


def test_a_template_is_made_and_handed_out(host) -> None:
    assert host.cold() == "there is no template of this size yet"
    lease = host.ready()
    manifest = lease.template.manifest
    assert (manifest.image, manifest.memory_mib, manifest.files["ram"].size) == ("0123", 2, 2 << 20)
    assert lease.template.file(files.STATE).read_bytes().startswith(b"state of ironcd-")
    (seen,) = host.templates.observe()
    assert (seen.key, seen.classes, seen.image) == (lease.template.key, ("ironcd",), "0123")
    assert (host.hypervisor.ours(), host.wires.present(), host.parts.reserved) == ([], frozenset(), {})


def test_a_machine_that_becomes_a_template_has_no_seed_and_no_link(host) -> None:
    host.ready()
    (spec,) = host.hypervisor.specs.values()
    assert spec.seed == ""
    assert [what for what, _ in host.wires.history] == ["make", "move", "delete"]  # never "up"
    assert host.parts.wall.present().taps == frozenset()


def test_classes_of_one_size_share_one(host) -> None:
    host.want(MACHINE, msgspec.structs.replace(MACHINE, name="ironcd-other"), MachineClass("cold", start="cold"))
    host.until(lambda: host.states() == ["ready"])
    assert host.templates.observe()[0].classes == ("ironcd", "ironcd-other")
    assert "GPU" in host.cold(msgspec.structs.replace(MACHINE, gpus=1))
    assert host.cold(msgspec.structs.replace(MACHINE, start="cold")) == ""


@pytest.mark.parametrize("what", ["image", "QEMU"])
def test_what_it_was_made_from_changes_and_another_is_made(host, what) -> None:
    old = host.ready().template.key
    host.room = False
    if what == "image":
        rebuilt = host.image.disk.with_name("rebuilt")
        rebuilt.write_bytes(QCOW2)
        rebuilt.replace(host.image.disk)
    else:
        host.hypervisor.identity = lambda: "QEMU, a newer one"
    host.until(lambda: sorted(host.states()) == ["building", "ready"])
    host.cold()
    host.room = True
    host.until(lambda: host.states() == ["ready", "ready"])
    assert host.templates.lease(MACHINE, host.image).template.key != old
    assert {seen.key: seen.classes for seen in host.templates.observe()}[old] == ()
    host.now += templates.UNWANTED_S * 1e6
    host.until(lambda: old not in files.list_keys(host.paths.templates))


def test_a_size_that_a_job_asked_for_gets_one(host) -> None:
    host.want(MachineClass("cold", start="cold"))
    host.cold()
    host.until(lambda: host.states() == ["ready"])


def test_where_a_job_needs_the_room_there_is_none(host) -> None:
    host.room, host.silent = False, True
    host.want()
    host.turn()
    assert not host.hypervisor.ours()
    host.room = True
    host.until(lambda: host.templates.building == MACHINE and host.hypervisor.ours())
    host.templates.make_room()
    host.until(lambda: host.templates.building is None and not host.hypervisor.ours())
    assert "room was needed" in host.cold()
    assert list(host.paths.templates.iterdir()) == []
    host.silent = False
    host.until(lambda: host.states() == ["ready"])


@pytest.mark.parametrize(
    ("total", "taken", "kept", "largest", "is_room"),
    [(16, 0, 0, 8, True), (15, 0, 0, 8, False), (16, 8, 0, 8, True), (16, 9, 0, 8, False), (24, 8, 9, 8, False)],
)
def test_a_sealed_copy_takes_its_whole_size_and_leaves_room_for_every_class(
    total, taken, kept, largest, is_room
) -> None:
    assert (no_room(8, total, taken, kept, largest) == "") is is_room


def test_a_host_of_one_machine_keeps_no_sealed_copy_in_its_way(host) -> None:
    host.templates.memory = lambda: (3, 0)  # MiB: one machine of 2 fits, and none beside a copy of 2
    host.want()
    host.until(lambda: host.states() == ["failed"])
    assert "no room on this host" in host.cold()
    assert host.templates.sealed_bytes() == 0
    host.templates.memory = lambda: (4, 0)
    host.until(lambda: host.states() == ["ready"])
    assert host.templates.sealed_bytes() == 2 << 20, "what clones can make of it, and not what it takes now"


def test_a_larger_class_has_sealed_copies_let_go(host) -> None:
    host.ready()
    host.templates.memory = lambda: (6, 0)
    host.want(MACHINE, msgspec.structs.replace(MACHINE, name="large", memory_mib=6, start="cold"))
    host.until(lambda: host.states() == ["failed"] and not host.templates.sealed_bytes())
    assert "a machine of 6 MiB" in host.cold()
    assert len(files.list_keys(host.paths.templates)) == 1, "it is there still"
    host.want()
    host.until(lambda: host.states() == ["ready"])
    assert len(host.hypervisor.specs) == 1, "and was not made anew"


def test_a_qemu_that_opens_for_reading_needs_no_copy(host) -> None:
    host.templates.memory = lambda: (2, 2)
    host.hypervisor.identity, host.hypervisor.version = (lambda: "QEMU 8.2.0, libvirt 9"), (lambda: "8.2.0")
    host.ready()
    assert host.templates.sealed_bytes() == 0


@pytest.mark.parametrize("error", [HostError("no libvirt", code="libvirt-away", remedy=""), OSError(12, "no memory")])
def test_what_this_machine_is_short_of_for_a_moment_costs_no_template(host, error, monkeypatch) -> None:
    key = host.ready().template.key

    def refuse() -> str:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(host.hypervisor, "version", refuse)
        host.templates.doubt(key, "libvirt was restarted")
        for _ in range(5):
            host.turn()
        assert "its template isn't ready" in host.cold()
        assert files.list_keys(host.paths.templates) == [key]
    host.until(lambda: host.states() == ["ready"])
    assert len(host.hypervisor.specs) == 1


def test_a_failed_build_is_told_and_tried_again_later_and_later(host) -> None:
    host.hypervisor.fail_with = HostError("no room for QEMU", code="libvirt-failed", remedy="")
    host.hypervisor.identity = lambda: "fake 0"
    host.want()
    pauses = [*templates.PAUSES_S, templates.PAUSES_S[-1]]
    with capture_logs() as logs:
        for pause in pauses:
            host.until(lambda: host.states() == ["failed"])
            known = next(iter(host.templates._known.values()))
            again_at = known.not_before + BOOTED_AT
            assert again_at - known.since <= pause  # turns go on between the two
            host.now = again_at
            known.state = "building"
    assert [line["again_in"] for line in logs if line["event"] == "template_failed"][: len(pauses)] == pauses
    problem = host.templates.problem()
    assert problem is not None
    assert (problem.code, problem.message) == ("template-failed", "no room for QEMU")
    assert "no room for QEMU" in host.cold()
    host.hypervisor.fail_with = None
    host.now += templates.PAUSES_S[-1]
    host.until(lambda: host.states() == ["ready"])
    assert host.templates.problem() is None


@pytest.mark.parametrize("name", [files.RAM, files.STATE, files.DISK, files.KERNEL, files.INITRD, files.MANIFEST])
@pytest.mark.parametrize("how", ["changed", "gone", "short"])
def test_a_template_that_is_not_whole_is_noticed_by_the_next_agent(host, name, how) -> None:
    breaks(host, name, how)


def test_so_is_one_whose_images_disk_is_gone(host) -> None:
    breaks(host, files.BASE, "gone")


def breaks(host: Host, name: str, how: str) -> None:
    place = host.ready().template.file(name)
    host.templates.close()
    place.chmod(0o600)
    content = bytearray(place.read_bytes())
    if how == "gone":
        place.unlink()
    elif how == "short":
        place.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        place.write_bytes(content)
    host.templates = host.parts.templates = Templates(host.parts)
    host.room = False
    host.want()
    host.until(lambda: not files.list_keys(host.paths.templates))
    assert "ready" not in host.states()
    host.cold()
    host.room = True
    host.until(lambda: host.states() == ["ready"])
    assert host.templates.lease(MACHINE, host.image)


def test_a_template_that_is_written_to_is_handed_out_no_more(host) -> None:
    lease = host.ready()
    host.room = False
    path = lease.template.file(files.STATE)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(1, lease.template.file(files.STATE).stat().st_mtime_ns))
    assert "was changed" in host.cold()
    host.until(lambda: not files.list_keys(host.paths.templates))


def test_a_whole_template_whose_clones_fail_is_made_anew(host) -> None:
    key = host.ready().template.key
    host.templates.doubt(key, "QEMU said no")
    assert "QEMU said no" in host.cold()
    host.until(lambda: host.states() == ["ready"])
    assert len(host.hypervisor.specs) == 1, "it was read again, and was whole"
    host.templates.doubt(key, "QEMU said no again")
    host.until(lambda: len(host.hypervisor.specs) == 2 and host.states() == ["ready"])


def test_one_clone_that_passes_the_gate_ends_the_doubt(host) -> None:
    key = host.ready().template.key
    for _ in range(3):
        host.templates.doubt(key, "once")
        host.until(lambda: host.states() == ["ready"])
        host.templates.trust(key)
    assert len(host.hypervisor.specs) == 1


def test_templates_are_made_anew_where_that_is_wanted(host) -> None:
    host.ready()
    host.templates.want((MACHINE,), 1.0)
    host.turn()
    assert len(host.hypervisor.specs) == 1
    host.templates.want((MACHINE,), host.now + 1)
    host.until(lambda: len(host.hypervisor.specs) == 2 and host.states() == ["ready"])
    for _ in range(5):
        host.turn()
    assert len(host.hypervisor.specs) == 2, "and only once"


def test_one_that_is_removed_is_made_anew_for_its_class(host) -> None:
    key = host.ready().template.key
    host.templates.want((MACHINE,), 0.0, {key: 1.0, "f" * 64: host.now})
    host.turn()
    assert host.states() == ["ready"], "it is younger than that"
    host.room = False
    host.templates.want((MACHINE,), 0.0, {key: host.now + 1})
    host.until(lambda: not files.list_keys(host.paths.templates))
    assert "removed" in host.cold()
    host.room = True
    host.until(lambda: len(host.hypervisor.specs) == 2 and host.states() == ["ready"])
    for _ in range(5):
        host.turn()
    assert len(host.hypervisor.specs) == 2, "and only once"


def test_one_that_is_removed_and_that_no_class_wants_stays_away_until_a_job_does(host) -> None:
    host.want(msgspec.structs.replace(MACHINE, start="cold"))
    asked = msgspec.structs.replace(MACHINE, memory_mib=4)
    host.cold(asked)
    host.until(lambda: host.states() == ["ready"])
    key = host.templates.lease(asked, host.image).template.key
    host.templates.want((), 0.0, {key: host.now + 1})
    host.until(lambda: not files.list_keys(host.paths.templates))
    for _ in range(5):
        host.turn()
    assert host.templates.observe() == ()
    assert len(host.hypervisor.specs) == 1
    assert "no template of this size yet" in host.cold(asked)
    host.until(lambda: host.states() == ["ready"])


def test_one_that_another_agent_made_is_removed_too(host) -> None:
    key = host.ready().template.key
    host.templates.close()
    host.templates = host.parts.templates = Templates(host.parts)
    host.templates.want((), 0.0, {key: host.now + 1})
    host.turn()
    assert files.list_keys(host.paths.templates) == []


def test_what_nobody_wants_any_more_goes_but_not_under_a_clone(host) -> None:
    key = host.ready().template.key
    host.templates.uses = lambda: {key: 1}
    host.want(msgspec.structs.replace(MACHINE, memory_mib=4))
    host.until(lambda: sorted(host.states()) == ["ready", "ready"])
    host.now += templates.UNWANTED_S * 1e6
    host.turn()
    assert key in files.list_keys(host.paths.templates)
    host.templates.uses = dict
    host.until(lambda: key not in files.list_keys(host.paths.templates))
    assert host.states() == ["ready"]


def test_what_they_take_on_the_disk_is_bounded_and_the_longest_unused_goes(host, monkeypatch) -> None:
    sizes = [msgspec.structs.replace(MACHINE, memory_mib=size) for size in (2, 3, 4)]
    host.want(*sizes)
    host.until(lambda: host.states() == ["ready"] * 3)
    for machine in (sizes[1], sizes[0]):  # the third was never used
        host.now += 10
        host.templates.lease(machine, host.image)
    monkeypatch.setattr(files, "disk_bytes", lambda _folder: 20 << 30)  # 60 GiB of the 40 that there may be
    host.turn()
    assert sorted(host.states()) == ["failed", "ready", "ready"]
    assert "templates_gib" in host.cold(sizes[2])
    for _ in range(3):
        host.turn()
    assert len(files.list_keys(host.paths.templates)) == 2, "it isn't made again at once"


def test_an_images_disk_counts_once_nobody_else_has_it(tmp_path) -> None:
    image, folder = tmp_path / "image", tmp_path / "template"
    folder.mkdir()
    image.write_bytes(os.urandom(1 << 20))
    (folder / files.RAM).write_bytes(os.urandom(4096))
    files.link_or_copy(image, folder / files.BASE)
    assert files.disk_bytes(folder) < 1 << 20
    image.unlink()
    assert files.disk_bytes(folder) > 1 << 20


def test_an_agent_that_stops_waits_for_no_channel(host, monkeypatch) -> None:
    monkeypatch.setattr(template_build, "_CHANNEL_S", 3600.0)
    host.talk.shut = True
    host.want()
    host.until(lambda: host.states() == ["building"] and host.hypervisor.ours())
    host.templates.close()
    assert host.templates._thread is None or not host.templates._thread.is_alive()
    assert host.hypervisor.ours() == []


def test_a_build_that_was_killed_leaves_nothing_that_counts(host) -> None:
    place = files.workplace(host.paths.templates, "01j")
    (place / files.RAM).write_bytes(b"half")
    assert files.list_keys(host.paths.templates) == []
    files.clear_half_built(host.paths.templates, time.time() - 60)
    assert place.exists(), "somebody may be at it"
    files.clear_half_built(host.paths.templates, time.time() + 60)
    assert list(host.paths.templates.iterdir()) == []


def test_holes_and_zeros_are_the_same_and_their_place_counts(tmp_path) -> None:
    def digest(content: bytes, holes: int = 0) -> files.Content:
        path = tmp_path / "file"
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.seek(holes)
            file.write(content)
        return files.digest_of(path)

    mib = 1 << 20
    assert digest(bytes(3 * mib) + b"x") == digest(b"x", holes=3 * mib)
    assert digest(bytes(3 * mib) + b"x") != digest(bytes(2 * mib) + b"x" + bytes(mib))
    assert digest(b"x") != digest(b"x" + bytes(5))


def test_which_qemu_can_map_what_it_may_only_read() -> None:
    assert [opens_read_only(version) for version in ("7.2.22", "8.1.9", "8.2.0", "10.0.2")] == [
        False,
        False,
        True,
        True,
    ]


def test_a_sealed_memory_can_not_be_written_by_anybody(host) -> None:
    lease = host.ready()
    memory = lease.memory
    assert isinstance(memory, SealedMemory)
    with pytest.raises(PermissionError):
        os.pwrite(memory._descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(memory._descriptor, 0)
    assert os.pread(memory._descriptor, 4096, 0) == lease.template.file(files.RAM).read_bytes()[:4096]
