"""What anybody may ask: the rate limit that is left, and GitHub's addresses and names."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from orchestrator.simulator.github import present
from orchestrator.simulator.github.http import Call, Rest, reply
from orchestrator.simulator.github.jit import RUNNER_HOSTS
from orchestrator.simulator.github.state import Account, timestamp
from orchestrator.simulator.runner.guest.version import VERSION


def routes(rest: Rest) -> list[Route]:
    return [
        rest.route("GET", "/rate_limit", show_rate_limit, open_=True),
        rest.route("GET", "/meta", show_meta, open_=True),
        rest.route("GET", "/repos/actions/runner/releases/latest", show_release, open_=True),
    ]


async def show_rate_limit(call: Call) -> Response:
    rates, installation = call.rest.rates, call.caller.installation
    who = "app" if call.caller.app else f"installation-{installation.id}" if installation else "anonymous"
    resources = {name: rates.view(who, name) for name in rates.limits}
    return reply({"resources": resources, "rate": resources["core"]})


async def show_release(call: Call) -> Response:
    """GitHub's runner is a public repository of GitHub's own: everybody may read its releases."""
    version, published = call.state.runner_release or (VERSION, call.state.app.created_at)
    tag, number = f"v{version}", 1_000_000 + sum(version.encode())
    base = f"{present.API}/repos/actions/runner/releases/{number}"
    author = present.account(Account(id=44_036_562, login="github-actions[bot]", type="User"))
    content = {
        "id": number,
        "node_id": present.node_id("RE", number),
        "tag_name": tag,
        "name": tag,
        "target_commitish": "main",
        "draft": False,
        "prerelease": False,
        "immutable": False,
        "created_at": timestamp(published),
        "updated_at": timestamp(published),
        "published_at": timestamp(published),
        "author": author,
        "assets": [],
        "body": "",
        "url": base,
        "html_url": f"{present.WEB}/actions/runner/releases/tag/{tag}",
        "assets_url": f"{base}/assets",
        "upload_url": f"{base}/assets{{?name,label}}",
        "tarball_url": f"{present.API}/repos/actions/runner/tarball/{tag}",
        "zipball_url": f"{present.API}/repos/actions/runner/zipball/{tag}",
    }
    return reply(content)


async def show_meta(_call: Call) -> Response:
    names = [name for name in RUNNER_HOSTS if name.endswith(".actions.githubusercontent.com")]
    content = {
        "verifiable_password_authentication": False,
        "ssh_key_fingerprints": {"SHA256_ED25519": "+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"},
        "ssh_keys": [],
        "hooks": ["192.30.252.0/22", "185.199.108.0/22", "140.82.112.0/20", "143.55.64.0/20"],
        "web": ["203.0.113.30/32"],
        "api": ["203.0.113.30/32"],
        "git": ["203.0.113.30/32"],
        "packages": [],
        "pages": [],
        "importer": [],
        "actions": [],
        "dependabot": [],
        "domains": {
            "website": ["*.github.com", "*.github.dev", "*.github.io", "*.githubassets.com", "*.githubusercontent.com"],
            "copilot": [],
            "packages": [],
            "actions": ["*.actions.githubusercontent.com", *names],
            "actions_inbound": {
                "full_domains": list(RUNNER_HOSTS),
                "wildcard_domains": ["*.actions.githubusercontent.com", "*.blob.core.windows.net"],
            },
            "artifact_attestations": {"trust_domain": "", "services": ["*.actions.githubusercontent.com"]},
        },
    }
    return reply(content)
