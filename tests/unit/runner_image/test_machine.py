from __future__ import annotations

import pytest

from runner_image.machine import (
    AptSource,
    apt_options,
    apt_proxies,
    debian_sources,
    pip_settings,
    read_os_release,
    usable,
)

LISTED = """\
http://mirror.example/debian/|bookworm|main|Debian
http://mirror.example/debian/|bookworm|contrib|Debian
http://mirror.example/debian/|bookworm-updates|main|Debian
http://mirror.example/debian-security/|bookworm-security|main|Debian
http://mirror.example/debian/|bookworm-backports|main|Debian Backports
https://tools.example/|bookworm|main|Tools Inc.
https://node.example/|nodistro|main|Node
http://mirror.example/debian/|bookworm|main|Debian
"""


def source(uri: str, suite: str) -> AptSource:
    return AptSource(uri, suite, "main", uri)


def test_debians_archive_is_told_from_others_and_turned_to_the_images_suite() -> None:
    assert debian_sources(LISTED, codename="bookworm", suite="trixie") == [
        source("http://mirror.example/debian", "trixie"),
        source("http://mirror.example/debian", "trixie-updates"),
        source("http://mirror.example/debian-security", "trixie-security"),
    ]


@pytest.mark.parametrize("codename", ["bookworm", "trixie", ""])
def test_on_a_machine_of_the_images_own_suite_and_of_stable(codename: str) -> None:
    listed = (
        "http://mirror.example/debian/|trixie|main|Debian\nhttp://mirror.example/debian/|stable-updates|main|Debian\n"
    )
    found = debian_sources(listed, codename=codename, suite="trixie")
    assert [entry.suite for entry in found] == ["trixie", "trixie-updates"]


def test_lists_that_were_never_fetched_have_no_origin() -> None:
    (found,) = debian_sources("http://mirror.example/d/|bookworm|main|$(ORIGIN)\n", codename="bookworm", suite="trixie")
    assert found.uri == "http://mirror.example/d"


def test_a_mirror_list_stands_for_its_first_entry(tmp_path: object) -> None:
    path = f"{tmp_path}/mirrors"
    with open(path, "w", encoding="utf-8") as file:
        file.write("# ours\n\nhttps://one.example/debian\tpriority:1\nhttps://two.example/debian\n")
    (found,) = debian_sources(f"mirror+file:{path}|bookworm|main|Debian\n", codename="bookworm", suite="trixie")
    assert found.uri == "https://one.example/debian"


def test_options_and_proxies_are_read_off_apts_configuration() -> None:
    dump = (
        'Acquire::Check-Valid-Until "false";\nAcquire::http::Proxy "http://user:pw@proxy.example:3128";\n'
        'Acquire::https::Proxy::mirror.example "DIRECT";\nAcquire::Languages "none";\nAPT::Architecture "amd64";\n'
    )
    assert apt_options(dump) == {"Acquire::Check-Valid-Until": "false"}
    assert apt_proxies(dump) == {
        "Acquire::http::Proxy": "http://user:pw@proxy.example:3128",
        "Acquire::https::Proxy::mirror.example": "DIRECT",
    }


def test_pips_later_file_wins_and_the_environment_last() -> None:
    files = ["[global]\nindex-url = https://a.example/simple\n", "[global]\nindex-url = https://b.example/simple\n"]
    assert pip_settings(files, {}) == {"index-url": "https://b.example/simple"}
    env = {"PIP_INDEX_URL": "https://c.example/simple", "PIP_CERT": "/x"}
    assert pip_settings(files, env) == {"index-url": "https://c.example/simple"}


def test_what_a_vm_cannot_use_is_left_out_of_pips_settings() -> None:
    text = "[global]\nextra-index-url = file:///srv/simple https://e.example/simple\ncert = /etc/ca.crt\nfind-links = /srv\n"
    assert pip_settings([text], {}) == {"extra-index-url": "https://e.example/simple"}


def test_an_index_with_a_password_is_not_taken_over() -> None:
    assert pip_settings(["[global]\nindex-url = https://me:secret@a.example/simple\n"], {}) == {}
    assert not usable("https://token@a.example/")


def test_a_file_that_is_no_configuration_is_passed_over() -> None:
    assert pip_settings(["index-url"], {}) == {}


def test_os_release() -> None:
    assert read_os_release('# x\nID=debian\nVERSION="13 (trixie)"\n') == {"ID": "debian", "VERSION": "13 (trixie)"}
