from __future__ import annotations

from runner_image.presets import hosts


def test_hosts_of_urls_each_once_in_order() -> None:
    urls = [
        "https://b.example/debian/",
        "http://a.example:8080/x",
        "https://B.example/security",
        "mirror+https://c.example/d",
    ]
    assert hosts(urls) == ("a.example", "b.example", "c.example")


def test_what_names_no_host_is_passed_over() -> None:
    assert hosts(["", "file:///srv/simple", "cdrom:[Debian]/", "undefined", "/srv", "https:///x"]) == ()
