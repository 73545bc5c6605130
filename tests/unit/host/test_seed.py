from __future__ import annotations

import io
import json

import pycdlib
import pytest

from orchestrator.core.errors import HostError
from orchestrator.core.names import names_of
from orchestrator.host import seed
from orchestrator.host.seed import (
    BLANK_BYTES,
    Authority,
    fill_seed,
    make_blank_seed,
    make_seed,
    meta_data,
    network_config,
    user_data,
)
from orchestrator.host.slots import slot_at

NAMES = names_of("01JZZZZZZZZZZZZZZZZZZZZZZ1")
SLOT = slot_at("10.201.0.0/16", 0)
JIT = "eyJ" + "QUJD" * 40


def test_user_data_writes_the_jit_for_root_only():
    text = user_data(NAMES, JIT, ())
    assert text.startswith("#cloud-config\n")
    config = json.loads(text.partition("\n")[2])
    (file,) = config["write_files"]
    assert file == {"path": "/run/ironcd/jit", "content": JIT, "owner": "root:root", "permissions": "0600"}
    assert config["hostname"] == NAMES.domain


def test_authorities_are_where_openssl_looks_and_where_an_update_finds_them():
    given = [Authority("0a0a0a0a", "A\n"), Authority("0b0b0b0b", "B\n"), Authority("0a0a0a0a", "C\n")]
    _, *files = json.loads(user_data(NAMES, JIT, given).partition("\n")[2])["write_files"]
    by_path = {file["path"]: file for file in files}
    assert by_path["/etc/ssl/certs/0a0a0a0a.0"]["content"] == "A\n"
    assert by_path["/etc/ssl/certs/0a0a0a0a.1"]["content"] == "C\n"
    assert by_path["/usr/local/share/ca-certificates/ironcd-1.crt"]["content"] == "B\n"
    bundle = [file for file in files if file["path"] == "/etc/ssl/certs/ca-certificates.crt"]
    assert [file["content"] for file in bundle] == ["A\n", "B\n", "C\n"]
    assert all(file["append"] for file in bundle)


def test_the_network_is_static_and_its_resolver_is_ours():
    (link,) = json.loads(network_config(SLOT))["ethernets"].values()
    assert link["addresses"] == ["10.201.0.1/31"]
    assert link["routes"] == [{"to": "0.0.0.0/0", "via": "10.201.0.0"}]
    assert link["nameservers"] == {"addresses": ["10.201.0.0"]}
    assert link["match"] == {"macaddress": "02:00:00:00:00:01"}
    assert (link["dhcp4"], link["dhcp6"], link["link-local"]) == (False, False, [])


def test_the_instance_is_the_runner():
    assert json.loads(meta_data(NAMES)) == {"instance-id": NAMES.domain, "local-hostname": NAMES.domain}


def test_the_image_has_what_nocloud_looks_for(tmp_path):
    path = tmp_path / NAMES.seed
    make_seed(path, NAMES, SLOT, jit=JIT, cas=())
    assert path.stat().st_mode & 0o777 == 0o600
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    for name, text in (("user-data", user_data(NAMES, JIT, ())), ("network-config", network_config(SLOT))):
        for kind in ("joliet_path", "rr_path"):
            data = io.BytesIO()
            iso.get_file_from_iso_fp(data, **{kind: f"/{name}"})
            assert data.getvalue().decode() == text
    iso.close()


def test_a_link_in_the_seeds_place_isnt_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (tmp_path / "seed").symlink_to(target)
    with pytest.raises(OSError):
        make_seed(tmp_path / "seed", NAMES, SLOT, jit=JIT, cas=())
    assert target.read_bytes() == b"precious"


def test_a_blank_seed_is_filled_in_its_place(tmp_path):
    """QEMU has it open: it must stay the same file, of the size that QEMU saw."""
    path = tmp_path / NAMES.seed
    make_blank_seed(path)
    assert not any(path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("rb") as qemus:
        fill_seed(path, NAMES, SLOT, jit=JIT, cas=())
        seen = qemus.read()
    assert len(seen) == path.stat().st_size == BLANK_BYTES
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(seen))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    found = io.BytesIO()
    iso.get_file_from_iso_fp(found, joliet_path="/user-data")
    assert found.getvalue().decode() == user_data(NAMES, JIT, ())


def test_a_seed_that_doesnt_fit_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / NAMES.seed
    make_blank_seed(path)
    monkeypatch.setattr(seed, "BLANK_BYTES", 4096)
    with pytest.raises(HostError, match="doesn't fit"):
        fill_seed(path, NAMES, SLOT, jit=JIT, cas=())
    assert not any(path.read_bytes())


def test_no_seed_is_filled_where_a_link_lies(tmp_path):
    (tmp_path / "other").write_bytes(b"precious")
    path = tmp_path / NAMES.seed
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        fill_seed(path, NAMES, SLOT, jit=JIT, cas=())
    assert (tmp_path / "other").read_bytes() == b"precious"
