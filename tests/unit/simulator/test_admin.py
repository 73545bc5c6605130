"""The page about the simulator lists its control API as it is."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.simulator.github.admin import admin_routes

PAGE = Path(__file__).parents[3] / "docs/operations/simulator.md"


async def test_the_page_has_each_request_and_no_other(github):
    listed = set(re.findall(r"^\| `([A-Z]+) (/_sim/[^`]+)` \|", PAGE.read_text(), re.MULTILINE))
    served = {
        (next(iter(route.methods - {"HEAD"})), route.path.replace("{path:path}", "{path}"))
        for route in admin_routes(github)
    }
    assert listed == served
