"""Who calls: the App by its JWT, an installation by its token, or nobody; and whether it may.

GitHub's rules for the JWT: RS256 with the App's key, ``iss`` is the App's id or client id, ``exp`` at most ten minutes
ahead, ``iat`` not in the future.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import jwt

from orchestrator.simulator.github.state import Installation, Repository, State, Token

LIFETIME_S = 3600.0
_LEVELS = {"read": 1, "write": 2, "admin": 3}
_SKEW_S = 60.0


class Refused(Exception):
    """An answer other than success, as GitHub words it."""

    def __init__(self, status: int, message: str, *, errors: list[str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the App itself, or one installation."""

    app: bool = False
    token: Token | None = None
    installation: Installation | None = None

    def sees(self, repo: Repository) -> bool:
        if self.installation is None or self.token is None or repo.owner.id != self.installation.account.id:
            return False
        limits = [ids for ids in (self.installation.repository_ids, self.token.repository_ids) if ids is not None]
        return all(repo.id in ids for ids in limits)

    def need(self, permission: str, level: str) -> None:
        """Raise `Refused` (403) where the token doesn't carry ``permission`` at ``level``."""
        held = self.token.permissions.get(permission, "") if self.token else ""
        if _LEVELS.get(held, 0) < _LEVELS[level]:
            raise Refused(403, "Resource not accessible by integration")


def caller_of(state: State, authorization: str) -> Caller:
    """The caller that the ``Authorization`` header proves.  Raises `Refused` (401, 403) where it proves none."""
    scheme, _, credential = authorization.partition(" ")
    if not authorization:
        return Caller()
    if scheme.lower() not in ("bearer", "token") or not credential:
        raise Refused(401, "Bad credentials")
    if credential.count(".") == 2 and not credential.startswith("ghs_"):
        _check_jwt(state, credential)
        return Caller(app=True)
    token = state.tokens.get(credential)
    if token is None or token.expires_at <= state.now():
        raise Refused(401, "Bad credentials")
    installation = state.installations.get(token.installation_id)
    if installation is None:
        raise Refused(401, "Bad credentials")
    if installation.suspended_at:
        raise Refused(403, "This installation has been suspended")
    return Caller(token=token, installation=installation)


def _check_jwt(state: State, credential: str) -> None:
    try:
        claims = jwt.decode(
            credential,
            state.app.private_key.public_key(),
            algorithms=["RS256"],
            options={
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "verify_sub": False,
                "verify_iss": False,
            },
        )
    except jwt.PyJWTError as error:
        raise Refused(401, "A JSON web token could not be decoded") from error
    if str(claims.get("iss")) not in (str(state.app.id), state.app.client_id):
        raise Refused(401, "'Issuer' claim ('iss') must be an Integer or a client ID")
    issued, expires, now = claims.get("iat"), claims.get("exp"), state.now()
    if not isinstance(expires, (int, float)) or expires <= now:
        raise Refused(
            401,
            "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires",
        )
    if expires > now + 600 + _SKEW_S / 10:
        raise Refused(401, "'Expiration time' claim ('exp') is too far in the future")
    if not isinstance(issued, (int, float)) or issued > now + _SKEW_S / 10:
        raise Refused(
            401, "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
        )


def issue_token(
    state: State, installation: Installation, permissions: dict[str, str], repository_ids: set[int] | None
) -> Token:
    """A new installation token: about 520 characters, as GitHub's are since 2026, and good for an hour."""
    token = Token(
        value="ghs_" + secrets.token_urlsafe(387),
        installation_id=installation.id,
        permissions=permissions,
        repository_ids=repository_ids,
        # Whole seconds are all that its text form can carry; rounding up keeps it good for a full hour.
        expires_at=float(int(state.now() + LIFETIME_S) + 1),
    )
    state.tokens[token.value] = token
    return token


def narrowed(installation: Installation, asked: object) -> dict[str, str]:
    """The permissions ``asked`` for, all of which the installation must have.  Raises `Refused` (422)."""
    if asked is None:
        return dict(installation.permissions)
    if not isinstance(asked, dict):
        raise Refused(422, "Invalid request.\n\n`permissions` is not an object.")
    for name, level in asked.items():
        held = installation.permissions.get(str(name), "")
        if level not in _LEVELS or _LEVELS.get(held, 0) < _LEVELS[level]:
            raise Refused(422, "The permissions requested are not granted to this installation.")
    return {str(name): str(level) for name, level in asked.items()}
