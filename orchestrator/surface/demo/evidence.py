"""What the outside recorded, put into the judge's form."""

from __future__ import annotations

import hashlib
import ssl

from orchestrator.surface.demo.judge import Outside
from orchestrator.surface.demo.lab import RESOLVER, Lab

ALLOWED = "203.0.113.10"


def outside_of(lab: Lab, traps: list[str], *, may_ping: bool = False) -> Outside:
    """Everything that arrived outside.  Only the allowed site on port 443 and DNS to our resolver may have got anything, and
    where the jobs ``may_ping`` the allowed site an echo too.
    """
    allowed, attacker, queries, sources = [], [], [], []
    for item in lab.received():
        sources.append(str(item["source"]))
        if item["proto"] == "dns":
            queries.append(str(item["name"]))
        if item["proto"] == "tcp" and (item["address"], item["port"]) == (ALLOWED, 443):
            allowed += [f"{request['method']} {request['target']}" for request in item["requests"]]
        elif may_ping and (item["proto"], item["address"]) == ("icmp", ALLOWED):
            continue
        elif item["address"] != RESOLVER:
            attacker.append(f"{item['proto']} {item['address']}:{item['port']}, {item['bytes_in']} bytes")
    return Outside(
        allowed=tuple(allowed),
        attacker=tuple(attacker),
        queries=tuple(queries),
        traps=tuple(traps),
        sources=tuple(sorted(set(sources))),
        certificate=site_certificate(lab),
    )


def site_certificate(lab: Lab) -> str:
    """SHA-256 of the allowed site's certificate, as its owner has it."""
    chain = (lab.folder / "world" / "ca" / "allowed.example.pem").read_text()
    end = "-----END CERTIFICATE-----"
    first = chain[: chain.index(end) + len(end)]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()
