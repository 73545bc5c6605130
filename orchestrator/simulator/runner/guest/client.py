"""HTTPS to GitHub's services, one kept-alive connection per host, verified against the system's trust store."""

from __future__ import annotations

import functools
import http.client
import json
import os
import ssl
import threading
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 100.0


@functools.cache
def trust() -> ssl.SSLContext:
    """The system's authorities; one for the whole process.

    A folder of them by the hash of their subjects is read as far as a server's certificate asks for it; the file with all of them
    takes longer than the connection.
    """
    paths = ssl.get_default_verify_paths()
    folder = paths.capath
    if paths.openssl_cafile_env in os.environ or not folder or not any(n.endswith(".0") for n in os.listdir(folder)):
        return ssl.create_default_context()
    return ssl.create_default_context(capath=folder)


class HttpError(Exception):
    """An answer other than a success; ``content`` is its JSON, where it had any."""

    def __init__(self, status: int, content: Any) -> None:
        super().__init__(f"HTTP {status}: {content}")
        self.status = status
        self.content = content if isinstance(content, dict) else {}


class Client:
    """Not shared between threads: connections are kept per thread and host."""

    def __init__(self, version: str) -> None:
        self._tls = trust()
        self._agent = f"GitHubActionsRunner-linux-x64/{version}"
        self._kept = threading.local()

    def _connection(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        kept: dict[str, http.client.HTTPConnection] = self._kept.__dict__.setdefault("by_host", {})
        if netloc not in kept:
            if scheme != "https":
                raise ValueError("only https")
            kept[netloc] = http.client.HTTPSConnection(netloc, context=self._tls, timeout=TIMEOUT_S)
        return kept[netloc]

    def send(
        self, method: str, url: str, *, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request.  Raises `HttpError` for a status of 400 and above, OSError where the host can't be reached."""
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {"User-Agent": self._agent, "Content-Length": str(len(body)), **(headers or {})}
        connection = self._connection(parts.scheme, parts.netloc)
        fresh = connection.sock is None
        try:
            return self._exchange(connection, method, target, body, sent)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
            connection.close()
            if fresh:
                raise
            # A kept connection may have been closed while it was idle; a new one tells.
            return self._exchange(connection, method, target, body, sent)
        except BaseException:
            connection.close()
            raise

    @staticmethod
    def _exchange(
        connection: http.client.HTTPConnection, method: str, target: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection.request(method, target, body=body or None, headers=headers)
        reply = connection.getresponse()
        content = reply.read()
        if reply.status >= 400:
            try:
                parsed: Any = json.loads(content)
            except ValueError:
                parsed = None
            raise HttpError(reply.status, parsed)
        return reply.status, content

    def json(self, method: str, url: str, content: Any = None, *, token: str = "") -> Any:
        """Send and take JSON; None for an empty answer."""
        headers = {"Content-Type": "application/json; charset=utf-8", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        body = b"" if content is None else json.dumps(content).encode()
        _status, answer = self.send(method, url, body=body, headers=headers)
        return json.loads(answer) if answer.strip() else None
