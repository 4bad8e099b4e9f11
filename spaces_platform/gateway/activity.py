"""What the gateway tells the control plane about traffic.

Owns: which deployments changed since the last report, and the rows of a report. Does not own: the counting itself,
which happens on the Backend of each exchange, nor the sending (link.py).
Invariant: a replaced deployment is reported until it has been reported with nothing in flight.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spaces_platform.gateway.backend import Backend


class Activity:
    """Collects rows between two reports."""

    def __init__(self) -> None:
        self.touched: set[Backend] = set()

    def rows(self) -> list[dict[str, Any]]:
        """The rows that changed; they count as reported from now on. `restore` undoes that."""
        touched, self.touched = self.touched, set()
        return [row(backend) for backend in touched]

    def restore(self, backends: set[Backend]) -> None:
        """A report did not arrive: its rows are due again."""
        self.touched |= backends


def row(backend: Backend) -> dict[str, Any]:
    """One deployment's traffic: requests and errors since this gateway first routed to it."""
    return {
        "space": backend.space,
        "deployment": backend.deployment,
        "in_flight": backend.active,
        "attached": backend.attached,
        "sockets": len(backend.sockets),
        "last_active": round(time.time() if backend.active else backend.last_active, 3),
        "requests": backend.requests,
        "errors": backend.errors,
    }
