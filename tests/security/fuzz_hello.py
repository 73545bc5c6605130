"""``python -m tests.security.fuzz_hello [COUNT] [SEED]``: our reader beside two others, over mutated and split hellos.

Whatever name we read, OpenSSL's server must read too (its ``sni_callback``), and mitmproxy's parser as well, from the same
bytes: we may refuse what they take, never read another name.  Prints what each hello came to; ends with an AssertionError
and the hello in hexadecimal where two differ in a way that isn't accepted (`tests.security.lab.second_opinion`).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.security.lab.second_opinion import Mitmproxy
from tests.unit.egress.differential import Server, bases, one, same

COUNT = 300_000
TOLD_S = 10.0


def main(count: int, seed: int) -> None:
    rng = random.Random(seed)
    results: Counter[str] = Counter()
    sys.unraisablehook = lambda _: None  # how the standard library says that a name isn't ASCII
    told = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Mitmproxy() as mitmproxy:
        server, msgs = Server(Path(folder)), bases()
        for number in range(count):
            data = one(number, msgs, rng)
            results[same(server, data)] += 1
            results[mitmproxy.compare(data)] += 1
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
