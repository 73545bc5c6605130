"""A just-in-time registration: the three files of GitHub's runner, packed as ``encoded_jit_config``.

The blob is base64 of a JSON object of file name to base64 content.  Its RSA key signs the assertion that buys the
runner's OAuth token: whoever holds the blob is that runner.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from orchestrator.simulator.github.state import Runner

BROKER = "broker.actions.githubusercontent.com"
TOKENS = "vstoken.actions.githubusercontent.com"
PIPELINES = "pipelinesghubeus1.actions.githubusercontent.com"
RUN_SERVICE = "run-actions-1-azure-eastus.actions.githubusercontent.com"
RESULTS = "results-receiver.actions.githubusercontent.com"
BLOBS = "productionresultssa0.blob.core.windows.net"
API = "api.github.com"
WEB = "github.com"
CODELOAD = "codeload.github.com"
RUNNER_HOSTS = (BROKER, TOKENS, PIPELINES, RUN_SERVICE, RESULTS, BLOBS, API, WEB, CODELOAD)
"""Every name that a runner may have to reach to get and to report a job."""


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _number(value: int) -> str:
    return base64.b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).decode()


def rsa_parameters(key: rsa.RSAPrivateKey) -> dict[str, str]:
    """``key`` in the form that .NET's RSAParameters takes in JSON."""
    private = key.private_numbers()
    public = private.public_numbers
    return {
        "d": _number(private.d),
        "dp": _number(private.dmp1),
        "dq": _number(private.dmq1),
        "exponent": _number(public.e),
        "inverseQ": _number(private.iqmp),
        "modulus": _number(public.n),
        "p": _number(private.p),
        "q": _number(private.q),
    }


def token_url(runner: Runner, url_of: Callable[[str], str]) -> str:
    return f"{url_of(TOKENS)}/_apis/oauth2/token/{runner.client_id}"


def encode(runner: Runner, key: rsa.RSAPrivateKey, url_of: Callable[[str], str]) -> str:
    """``encoded_jit_config`` of ``runner``; ``url_of(host)`` gives the base URL under which a GitHub host is served."""
    settings: dict[str, Any] = {
        "AgentId": runner.id,
        "AgentName": runner.name,
        "DisableUpdate": False,
        "Ephemeral": True,
        "PoolId": runner.group_id,
        "PoolName": "Default",
        "ServerUrl": f"{url_of(PIPELINES)}/",
        "ServerUrlV2": f"{url_of(BROKER)}/",
        "UseV2Flow": True,
        "WorkFolder": runner.work_folder,
        "GitHubUrl": "",
    }
    credentials = {
        "Scheme": "OAuth",
        "Data": {
            "clientId": runner.client_id,
            "authorizationUrl": token_url(runner, url_of),
            "requireFipsCryptography": "True",
        },
    }
    files = {".runner": settings, ".credentials": credentials, ".credentials_rsaparams": rsa_parameters(key)}
    packed = {name: base64.b64encode(json.dumps(content).encode()).decode() for name, content in files.items()}
    return base64.b64encode(json.dumps(packed).encode()).decode()
