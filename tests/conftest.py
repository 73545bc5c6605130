"""The same examples in each run: a suite that rolls its dice anew is one that now and then fails for nobody's change.

``pytest --hypothesis-profile=fresh tests/unit`` looks for new ones.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No limit on an example's time either: the machine may be five times slower, or busy with something else.
_UNTIMED = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **_UNTIMED)
settings.register_profile("fresh", derandomize=False, print_blob=True, **_UNTIMED)
settings.load_profile("same")
