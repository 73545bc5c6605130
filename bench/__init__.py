"""What `make bench` measures: figures of IronCD beside a peer's or a limit's, taken in the same run on the same machine.

Rules:

1. A peer is measured in turns with IronCD (`bench.rows.in_turns`), under the same load, on the same cores; the figure is
   the median over the rounds.  A machine that is busy with something else is busy for both.
2. Where the two can't be set up alike, the peer gets the better of it, and the row's note says so.
3. A figure stands in ``build/bench.json`` and nowhere else: no document repeats it.
4. What couldn't be measured is a row that failed, with the reason, never a row that is missing.
"""
