"""The last answers to what is read again and again, each with its ETag: asking whether it changed costs no rate limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

KEPT = 2000

_Key = tuple[int, str, tuple[tuple[str, str], ...]]


class Answer(msgspec.Struct, frozen=True):
    tag: str
    value: Any
    """Shared by all who ask: to be read only."""


class Answers:
    """The `KEPT` that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, Answer] = OrderedDict()

    def get(self, installation: int, path: str, query: Mapping[str, Any] | None) -> Answer | None:
        key = _key(installation, path, query)
        answer = self._kept.get(key)
        if answer is not None:
            self._kept.move_to_end(key)
        return answer

    def put(self, installation: int, path: str, query: Mapping[str, Any] | None, answer: Answer) -> None:
        key = _key(installation, path, query)
        self._kept[key] = answer
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _key(installation: int, path: str, query: Mapping[str, Any] | None) -> _Key:
    return installation, path, tuple(sorted((name, str(value)) for name, value in (query or {}).items()))
