"""``python -m tests.security.fuzz_hello [COUNT] [SEED]``: our reader beside OpenSSL's server, over mutated and split hellos.

Whatever name we read, OpenSSL's server must read too (its ``sni_callback``), from the same bytes: we may refuse what it
takes, never read another name.  Where ``MITMPROXY_PYTHON`` names an interpreter that has mitmproxy, its parser is asked as
well.  Prints what each hello came to; ends with an AssertionError and the hello in hexadecimal where two differ.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from orchestrator.egress.hello import Hello, HelloReader
from tests.unit.egress.differential import Server, bases, one, same

COUNT = 300_000
TOLD_S = 10.0

_MITMPROXY = """
import sys, types
sys.modules.setdefault("mitmproxy_linux", types.ModuleType("mitmproxy_linux"))  # its eBPF part isn't needed to parse
from mitmproxy.proxy.layers.tls import parse_client_hello
for line in sys.stdin:
    try:
        hello = parse_client_hello(bytes.fromhex(line))
        print("more" if hello is None else "name " + (hello.sni or ""), flush=True)
    except Exception:
        print("refused", flush=True)
"""


class Mitmproxy:
    """mitmproxy's reading of a hello, asked of a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def same(self, data: bytes) -> str:
        """Compare with it where we read a name; what it came to."""
        ours = HelloReader().feed(data)
        if not isinstance(ours, Hello):
            return "refused by us"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(data.hex() + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().rstrip("\n")
        kind, _, name = answer.partition(" ")
        if kind != "name":
            return f"mitmproxy: {kind}"
        assert (ours.name or "") == name.lower().removesuffix("."), (ours.name, name, data.hex())
        return "mitmproxy: same"


@contextlib.contextmanager
def mitmproxy() -> Iterator[Mitmproxy | None]:
    python = os.environ.get("MITMPROXY_PYTHON")
    if not python:
        yield None
        return
    argv = [python, "-c", _MITMPROXY]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Mitmproxy(process)
        process.kill()


def main(count: int, seed: int) -> None:
    rng = random.Random(seed)
    results: Counter[str] = Counter()
    sys.unraisablehook = lambda _: None  # how the standard library says that a name isn't ASCII
    told = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, mitmproxy() as other:
        server, msgs = Server(Path(folder)), bases()
        for number in range(count):
            data = one(number, msgs, rng)
            results[same(server, data)] += 1
            if other is not None:
                results[other.same(data)] += 1
            if time.monotonic() - told > TOLD_S:
                told = time.monotonic()
                print(f"{number + 1}: {dict(results)}", flush=True)  # noqa: T201 - it is run by hand
    print(f"{count} hellos, seed {seed}: {dict(results)}")  # noqa: T201 - it is run by hand


if __name__ == "__main__":
    arguments = [int(text) for text in sys.argv[1:]]
    main(
        arguments[0] if arguments else COUNT,
        arguments[1] if len(arguments) > 1 else random.SystemRandom().randrange(1 << 32),
    )
