"""``ironcd hosts drain`` and ``undrain``: by an admin for any host, or by a host for itself when it goes down.

Exit status of ``drain --wait``: 0 once the host is empty; 1 where it isn't two minutes after the deadline, or somebody took the
drain back; 2 where there is no such host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson, length

if TYPE_CHECKING:
    from orchestrator.surface.api_client import ApiClient

LOOK_S = 2.0
TELL_S = 30.0
STUCK_S = 120.0
"""After the deadline a runner has its notice, and its host has to destroy it and to prove that it is gone."""

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="The host.", show_default=False)]
This = Annotated[bool, typer.Option("--this", help="This host, with its own token: no admin's is needed.")]


def register(app: typer.Typer) -> None:
    app.command("drain")(drain)
    app.command("undrain")(undrain)


def drain(
    name: Name = None,
    *,
    deadline: Annotated[str, typer.Option(help="How long jobs may still run: 90s, 30m, 1h30m.")] = "30m",
    why: Annotated[str, typer.Option(help="For whoever wonders.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Come back when the host is empty.")] = False,
    this: This = False,
    as_json: AsJson = False,
) -> None:
    """Empty a host: no new runners, idle ones given back, jobs ended at the deadline.

    Once more, it sets a new deadline.

    Example: [bold]ironcd hosts drain metal-1 --deadline 1h --wait[/bold]
    """
    lasts = length(deadline, "--deadline")
    client, path = _way(name, this=this)
    asked: dict[str, str | int | float | None] = {"deadline_s": lasts, "why": None if this else why}
    seen = client.post(f"{path}drain", asked)
    if wait:
        seen = watch(lambda: client.get(f"{path}drain"), typer.echo if not as_json else _silent)
    if as_json or not wait:
        _show(seen, as_json=as_json)


def undrain(name: Name = None, *, this: This = False, as_json: AsJson = False) -> None:
    """Give a drained host new runners again, and jobs that still run there their whole time.

    With --this only what the host itself asked for is taken back.  A host that is cordoned stays so.

    Example: [bold]ironcd hosts undrain metal-1[/bold]
    """
    client, path = _way(name, this=this)
    _show(client.post(f"{path}undrain"), as_json=as_json)


def watch(
    look: Callable[[], dict[str, Any]],
    say: Callable[[str], object],
    *,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Look until the host is empty; what was seen then.  Raises OperationalError where it doesn't get there."""
    said, said_at, late_since = "", float("-inf"), float("inf")
    while True:
        seen, now = look(), clock()
        _judge(seen, late_s=max(0.0, now - late_since))
        what = f"{seen['runners']} {seen['busy']}"
        if what != said or now - said_at >= TELL_S or seen["empty"]:
            say(_words(seen))
            said, said_at = what, now
        if seen["empty"]:
            return seen
        late_since = min(late_since, now) if not seen["left_s"] else float("inf")
        sleep(LOOK_S)


def _show(seen: dict[str, Any], *, as_json: bool) -> None:
    from orchestrator.surface.cli.terminal import print_json

    if as_json:
        print_json(seen)
    else:
        typer.echo(_words(seen))


def _judge(seen: dict[str, Any], *, late_s: float) -> None:
    from orchestrator.core.errors import OperationalError

    if not seen["draining"]:
        raise OperationalError(
            f"{seen['host']} isn't being drained any more: somebody took it back",
            code="drain-lifted",
            remedy="See who did, in the control plane's log (host_undrained), and drain it again.",
        )
    if late_s >= STUCK_S and not seen["empty"]:
        raise OperationalError(
            f"{seen['host']} still has {seen['runners']} runners, {late_s:.0f} s after the deadline",
            code="drain-stuck",
            remedy="`ironcd runners list` says what each waits for; without its agent a host can prove nothing.",
        )


def _words(seen: dict[str, Any]) -> str:
    from orchestrator.surface.cli.terminal import clean, seconds

    host = clean(seen["host"])
    if not seen["draining"]:
        return f"{host} takes runners again"
    if seen["empty"]:
        return f"{host} is empty"
    idle = seen["runners"] - seen["busy"]
    left = f"jobs have {seconds(seen['left_s'])} left" if seen["left_s"] else "the deadline has passed"
    return f"{host}: {seen['busy']} with a job, {idle} without; {left}"


def _way(name: str | None, *, this: bool) -> tuple[ApiClient, str]:
    from orchestrator.core.errors import UserError
    from orchestrator.surface.api_client import ApiClient

    if this == (name is not None):
        raise UserError(
            "name one host, or say --this", code="bad-option", remedy="`ironcd hosts list` has their names."
        )
    if this:
        return ApiClient.of_host(GLOBAL.settings()), ""
    return ApiClient.of(GLOBAL.settings()), f"hosts/{quote(name or '', safe='')}/"


def _silent(_text: str) -> None:
    pass
