from __future__ import annotations

import pytest

from orchestrator.core.errors import HostError
from orchestrator.host.slots import REST_S, Slots, slot_at


def test_addresses_of_a_link():
    slot = slot_at("10.201.0.0/16", 3)
    assert (slot.gateway_ip, slot.guest_ip) == ("10.201.0.6", "10.201.0.7")
    with pytest.raises(IndexError):
        slot_at("10.0.0.0/30", 2)


def test_the_lowest_free_link_is_taken():
    slots = Slots("10.0.0.0/29")
    assert [slots.take(0.0).index for _ in range(3)] == [0, 1, 2]


def test_a_link_rests_after_use():
    slots = Slots("10.0.0.0/29")
    assert slots.take(0.0).index == 0
    slots.release(0, 0.0)
    assert slots.take(1.0).index == 1
    assert slots.take(REST_S).index == 0


def test_an_adopted_link_isnt_given_away():
    slots = Slots("10.0.0.0/29")
    slots.adopt(0)
    assert slots.take(0.0).index == 1


def test_the_end_of_the_range_is_an_error_with_a_remedy():
    slots = Slots("10.0.0.0/30")
    slots.take(0.0)
    slots.take(0.0)
    with pytest.raises(HostError) as caught:
        slots.take(0.0)
    assert caught.value.code == "links-exhausted"
    assert "links_range" in caught.value.remedy
