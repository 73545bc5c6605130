"""Hosts that haven't said yet what they run, after Redis was emptied: their machines are known to nobody, and count for quotas.

So nothing new is made until each host of the settings has spoken, for a few seconds.  The wait is bounded by what the worker
saw itself: it begins when one host has spoken and another hasn't (before that there is no host to place anything on), and a
host that let its time pass is waited for no more until it was heard again, however often Redis is emptied meanwhile.
"""

from __future__ import annotations

from orchestrator.control.world import World


class Unheard:
    """One for each worker: of each host that is missing, since when it is."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def waited_for(self, world: World) -> list[str]:
        """Hosts that may still come to say what they run.  Asked once in each pass."""
        missing = world.settings.hosts.keys() - world.sightings.keys()
        self._since = {host: min(at, world.now) for host, at in self._since.items() if host not in world.sightings}
        if not world.sightings:
            return []
        for host in missing:
            self._since.setdefault(host, world.now)
        patience_s, listening = world.settings.pace.host_away_s, world.listening
        if listening is not None and listening.at - listening.since >= patience_s:
            return []
        return sorted(host for host in missing if world.now - self._since[host] < patience_s)
