"""The record of egress, as the hosts ship it: `Ledger` keeps and searches it, `router` serves it."""

from orchestrator.audit.api import router
from orchestrator.audit.copies import keep_copies
from orchestrator.audit.ledger import Gap, Ledger
from orchestrator.audit.search import Query
from orchestrator.audit.tend import tend

__all__ = ["Gap", "Ledger", "Query", "keep_copies", "router", "tend"]
