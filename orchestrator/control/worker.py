"""The worker's process: RQ in the main thread, an event loop in another, and a ticker that looks every second.

RQ's hints make it quick; the ticker makes it sure.  On SIGTERM or SIGINT the look at hand is finished; killed outright,
the next worker goes on where this one was, as soon as the lease has run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
import structlog
from rq import SimpleWorker
from rq.serializers import JSONSerializer
from rq.timeouts import TimerDeathPenalty

from orchestrator.control import work
from orchestrator.control.blocked import BlockedOf, BlockedReporter
from orchestrator.control.clock_set import reckoned
from orchestrator.control.github_governed import GovernedGitHub
from orchestrator.control.github_kit import KitGitHub
from orchestrator.control.github_transport import Gauge
from orchestrator.control.governor import Governor
from orchestrator.control.policy_questions import PolicyAnswers, answer_forever
from orchestrator.control.reconcile import Reconciler
from orchestrator.control.sealed import Seal
from orchestrator.control.settings import ControlSettings
from orchestrator.control.store import Store
from orchestrator.core.errors import ConfigurationError, IronCDError
from orchestrator.core.presets import Presets
from orchestrator.system.hint import enqueue, queue_of

TICK_S = 1.0
AGAIN_S = 2.0
"""After Redis was away."""
TELL_EVERY_S = 5.0

log = structlog.get_logger()


def run(settings: ControlSettings, presets: Presets, blocked_of: BlockedOf | None = None) -> None:
    """Work until told to stop.  Raises ConfigurationError where the App's key can't be read.

    With ``blocked_of`` commits are told what their jobs were kept from.
    """
    logging.getLogger("rq").setLevel(logging.WARNING)
    github = KitGitHub(
        settings.app_id,
        read_key(settings.private_key_file),
        api_url=settings.api_url,
        runner_group_id=settings.runner_group_id,
    )
    seal = Seal.in_folder(Path(settings.state_dir))
    with _loop() as loop:
        worker = Worker(settings, github, presets, seal, loop)
        beside = [asyncio.run_coroutine_threadsafe(task, loop) for task in (worker.tell(blocked_of), worker.answer())]
        try:
            worker.work()
        finally:
            for task in beside:
                task.cancel()
            asyncio.run_coroutine_threadsafe(worker.close(), loop).result(timeout=30)


class Worker:
    def __init__(
        self,
        settings: ControlSettings,
        github: KitGitHub,
        presets: Presets,
        seal: Seal,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._settings = settings
        self._github = github
        self._presets = presets
        self._loop = loop
        self._store = Store.at(settings.redis_url, settings.prefix)
        self._governor = Governor(clock=time.time, limits=github.gauge.limits)
        self._reconciler = Reconciler(
            self._store, github, settings, presets, seal, governor=self._governor, reckon=reckoned
        )
        self._stopped = threading.Event()
        self._looking = False

    def work(self) -> None:
        """RQ until SIGTERM or SIGINT; started again where Redis was away."""
        work.install(self._loop, self.look)
        ticker = threading.Thread(target=self._tick, name="ticker", daemon=True)
        ticker.start()
        try:
            while not self._rq():
                time.sleep(AGAIN_S)
        finally:
            self._stopped.set()
            ticker.join(timeout=5)
            work.install(None, None)

    async def look(self) -> bool:
        """One look, with its result counted."""
        self._looking = True
        try:
            done = await self._reconciler.look()
        except Exception:
            log.exception("look_failed")
            with contextlib.suppress(IronCDError):
                await self._count("failed")
            raise
        finally:
            self._looking = False
        await self._count("done" if done else "left_to_another")
        return done

    async def tell(self, blocked_of: BlockedOf | None) -> None:
        """Until cancelled: a round of telling commits what was blocked, every few seconds."""
        if blocked_of is None:
            return
        reporter = BlockedReporter(self._store, GovernedGitHub(self._github, self._governor), blocked_of)
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            try:
                await reporter.round()
            except IronCDError as error:
                log.warning("round_lost", error=error.message)
            except Exception:
                log.exception("round_failed")

    async def answer(self) -> None:
        """Until cancelled: answer what the API asks about policies."""
        github = GovernedGitHub(self._github, self._governor)
        await answer_forever(PolicyAnswers(self._store, github, self._settings, self._presets))

    async def close(self) -> None:
        await self._github.close()
        await self._store.close()

    def _rq(self) -> bool:
        """True where it ended because it was told to."""
        queue = queue_of(self._settings.redis_url, prefix=self._settings.prefix)
        try:
            worker = _QuietWorker([queue], connection=queue.connection, serializer=JSONSerializer)
            worker.work(logging_level="WARNING")
        except (redis.RedisError, OSError) as error:
            log.warning("redis_away", error=str(error))
            return False
        finally:
            queue.connection.close()
        return worker.stopped

    def _tick(self) -> None:
        queue = queue_of(self._settings.redis_url, prefix=self._settings.prefix)
        while not self._stopped.wait(TICK_S):
            if self._looking:
                continue
            try:
                if asyncio.run_coroutine_threadsafe(self._store.claim_hint(), self._loop).result(timeout=10):
                    enqueue(queue)
            except (redis.RedisError, OSError, IronCDError, TimeoutError) as error:
                log.warning("tick_lost", error=str(error))

    async def _count(self, result: str) -> None:
        """Into the counters in Redis: looks, requests to GitHub, and what is left of its limits."""
        gauge = self._github.gauge
        calls, gauge.calls = gauge.calls, type(gauge.calls)()
        counts = {f"github_calls{{method={m},route={r},status={s}}}": n for (m, r, s), n in calls.items()}
        counts[f"looks{{result={result}}}"] = 1
        held, self._governor.held = self._governor.held, type(self._governor.held)()
        counts |= {f"github_held{{kind={kind},why={why}}}": n for (kind, why), n in held.items()}
        await self._store.add_counts(counts, what_github_told(gauge, time.time()))


class _QuietWorker(SimpleWorker):
    """Runs hints in this process.  A look that hangs is ended by a timer in its own thread, not by a signal."""

    death_penalty_class = TimerDeathPenalty
    stopped = False
    """It was told to stop.  RQ itself notes that only where it comes in the middle of a job."""

    def request_stop(self, signum: Any, frame: Any) -> None:
        self.stopped = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]


def what_github_told(gauge: Gauge, now: float) -> dict[str, float]:
    """Its limits, by the counters' names, as they stand at ``now``, and how far its clock is ahead of ours."""
    values: dict[str, float] = {}
    for (installation, name), seen in gauge.limits.items():
        by = f"{{installation={installation or 'app'},resource={name}}}"
        values[f"github_remaining{by}"] = seen.remaining if seen.reset_at > now else seen.limit
        values[f"github_limit{by}"] = seen.limit
    if gauge.skew is not None:
        values["github_clock_skew"] = round(gauge.skew, 3)
    return values


def read_key(path: str) -> str:
    """The App's private key.  Raises ConfigurationError (code ``app-key-unreadable``)."""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the App's private key {path} can't be read: {error}",
            code="app-key-unreadable",
            remedy="Download a private key of the GitHub App and put it there, mode 0600.",
        ) from None


@contextlib.contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own for the length of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="loop", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
