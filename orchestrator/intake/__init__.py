"""Webhooks in: `router(receiver)` serves ``POST /webhook``; a delivery is in Redis, synced, before GitHub hears 202."""

from orchestrator.intake.inbox import Inbox
from orchestrator.intake.receiver import Receiver, router
from orchestrator.intake.secrets import SecretFiles

__all__ = ["Inbox", "Receiver", "SecretFiles", "router"]
