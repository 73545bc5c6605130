"""Who gets in: the App's JWT by GitHub's rules, installation tokens, and what each may do."""

from __future__ import annotations

import jwt
import pytest

from orchestrator.simulator.github.auth import issue_token
from orchestrator.simulator.github.identity import pem_of
from orchestrator.simulator.github.jit import new_key

JIT = "/orgs/acme/actions/runners/generate-jitconfig"
REGISTRATION = {"name": "r", "runner_group_id": 1, "labels": ["ironcd"]}
FREE = "authentication fails before the description applies"


async def as_app(client, token: str) -> int:
    reply = await client.http.get("/app", headers={"Authorization": f"Bearer {token}"})
    return reply.status_code


async def test_a_good_jwt_is_taken_by_app_id_or_client_id(client, github):
    assert await as_app(client, client.app_jwt()) == 200
    assert await as_app(client, client.app_jwt(iss=github.app_record.client_id)) == 200


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "7"},
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"iat": None},
    ],
)
async def test_a_jwt_with_a_wrong_claim_is_401(client, claims):
    assert await as_app(client, client.app_jwt(**claims)) == 401


async def test_exp_may_be_ten_minutes_ahead_and_iat_not_in_the_future(client, github):
    now = int(github.state.now())
    assert await as_app(client, client.app_jwt(exp=now + 600)) == 200
    assert await as_app(client, client.app_jwt(exp=now + 700)) == 401
    assert await as_app(client, client.app_jwt(iat=now + 60)) == 401


async def test_a_jwt_by_another_key_or_algorithm_is_401(client, github):
    now = int(github.state.now())
    claims = {"iss": str(github.app_record.id), "iat": now - 60, "exp": now + 500}
    assert await as_app(client, jwt.encode(claims, pem_of(new_key()), "RS256")) == 401
    assert await as_app(client, jwt.encode(claims, "a" * 32, "HS256")) == 401
    assert await as_app(client, jwt.encode(claims, None, "none")) == 401


async def test_the_apps_routes_refuse_installation_tokens_and_the_other_way_round(client):
    assert (await client.ask("GET", "/app", unchecked=FREE)).status_code == 401
    assert (await client.ask("POST", JIT, REGISTRATION, app=True, unchecked=FREE)).status_code == 401
    assert (await client.http.get("/installation/repositories")).status_code == 401


@pytest.mark.parametrize(
    ("permissions", "status"),
    [
        ({"organization_self_hosted_runners": "write"}, 201),
        ({"organization_self_hosted_runners": "read"}, 403),
        ({"administration": "write"}, 403),
    ],
)
async def test_a_token_does_what_its_permissions_say(client, github, permissions, status):
    installation = github.state.installations[github.installation_id]
    client.token = issue_token(github.state, installation, permissions, None).value
    reply = await client.ask("POST", JIT, REGISTRATION, unchecked=FREE)
    assert reply.status_code == status
    if status == 403:
        assert reply.json()["message"] == "Resource not accessible by integration"


async def test_a_token_lives_an_hour_and_no_longer(client, clock):
    clock.ahead = 3590
    assert (await client.ask("GET", "/installation/repositories")).status_code == 200
    clock.ahead = 3602
    assert (await client.ask("GET", "/installation/repositories")).status_code == 401


async def test_a_token_for_chosen_repositories_sees_no_other(client, github):
    other = github.create_repository("other")
    installation = github.state.installations[github.installation_id]
    client.token = issue_token(github.state, installation, dict(installation.permissions), {other.id}).value
    assert (await client.ask("GET", "/repos/acme/app", unchecked="not in the cut")).status_code == 404
    assert (await client.ask("GET", "/repos/acme/other", unchecked="not in the cut")).status_code == 200


async def test_a_suspended_installation_is_refused(client, github):
    github.state.installations[github.installation_id].suspended_at = github.state.now()
    assert (await client.ask("GET", "/installation/repositories")).status_code == 403
    path = f"/app/installations/{github.installation_id}/access_tokens"
    assert (await client.ask("POST", path, app=True)).status_code == 403


async def test_another_organisation_is_not_found(client):
    reply = await client.ask("POST", JIT.replace("acme", "elsewhere"), REGISTRATION)
    assert reply.status_code == 404
