"""What a job's message says, as plain values: the github context, environment, and ``${{ }}`` of the simple kind."""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]
_EXPRESSION = re.compile(r"\$\{\{\s*([A-Za-z_][\w.\-]*)\s*\}\}")


def mapping(token: Any) -> dict[str, str]:
    """A template token of type mapping as a dictionary."""
    items = token.get("map", []) if isinstance(token, dict) else []
    return {str(item["Key"]): str(item["Value"]) for item in items}


def plain(value: Any) -> Any:
    """Context data (t 1 array, 2 dictionary) as plain values."""
    if not isinstance(value, dict):
        return value
    if value.get("t") == 2:
        return {item["k"]: plain(item.get("v")) for item in value.get("d", [])}
    if value.get("t") == 1:
        return [plain(item) for item in value.get("a", [])]
    return value.get("s", value.get("b", value.get("n")))


def secrets_of(message: Json) -> dict[str, str]:
    """The job's secrets by name."""
    variables = message.get("variables", {})
    return {name: str(item.get("value", "")) for name, item in variables.items() if item.get("isSecret")}


def expand(text: str, contexts: Json) -> str:
    """Put in the values of ``${{ a.b }}``; one that isn't there is empty, as GitHub has it.

    Expressions with operators or functions stay as they are: the simulator doesn't have GitHub's language.
    """

    def look_up(match: re.Match[str]) -> str:
        value: Any = contexts
        for name in match.group(1).split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return "" if value is None else str(value)

    return _EXPRESSION.sub(look_up, text)
