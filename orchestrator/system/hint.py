"""Tell the worker to look, through RQ.  A hint that is lost costs a second: the worker's own ticker looks too.

Entries are JSON, never pickle: whoever can write to the queue must not get to run code by what an entry unpacks to.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import redis
import structlog
from rq import Queue
from rq.serializers import JSONSerializer

from orchestrator.core.inbox import LOOK, QUEUE

log = structlog.get_logger()


def queue_of(url: str, *, prefix: str = "ironcd:") -> Queue:
    """The queue that the worker listens to; one for each prefix in use.  RQ speaks its own, blocking Redis client."""
    connection = redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=2)
    return Queue(queue_name(prefix), connection=connection, serializer=JSONSerializer)


def queue_name(prefix: str) -> str:
    return QUEUE if prefix == "ironcd:" else f"{QUEUE}-{prefix.rstrip(':')}"


def enqueue(queue: Queue) -> None:
    """Put one hint in ``queue``; it is forgotten as soon as it was followed, or after a minute."""
    queue.enqueue(LOOK, job_timeout=300, result_ttl=0, failure_ttl=60, ttl=60, description="look")


class Hints:
    """Enqueues from an event loop, in a thread of its own, at most one at a time; failures are logged and let go."""

    def __init__(self, url: str, *, prefix: str = "ironcd:") -> None:
        self._queue = queue_of(url, prefix=prefix)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hint")
        self._tasks: set[asyncio.Future[None]] = set()

    def __call__(self) -> None:
        if self._tasks:
            return
        task = asyncio.get_running_loop().run_in_executor(self._thread, self._enqueue)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _enqueue(self) -> None:
        try:
            enqueue(self._queue)
        except redis.RedisError as error:
            log.warning("hint_lost", error=str(error))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._queue.connection.close()
