"""What must not show in a log: the job's secrets, in each form that a step is likely to print them in."""

from __future__ import annotations

import base64


class Masks:
    def __init__(self) -> None:
        self._values: list[str] = []

    def add(self, secret: str) -> None:
        """Mask ``secret``, each of its lines, and its base64."""
        forms = {secret, *secret.splitlines(), base64.b64encode(secret.encode()).decode().rstrip("=")}
        self._values = sorted(
            {*self._values, *(form for form in forms if len(form.strip()) > 3)}, key=len, reverse=True
        )

    def apply(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, "***")
        return text
