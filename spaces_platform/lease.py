"""The lease of the control plane: on a database that several machines reach, one control plane works at a time.

The data directory's lock cannot see another machine. The lease can: a row with a holder, a term, and an end by the
clock of the database server, so that no machine's own clock matters. Whoever takes it raises the term; every write of
the process checks the term under the writers' lock (`Store.write`), so that a holder which was stopped for a while and
goes on is refused, however late it notices. The holder's name is its machine and data directory: a control plane that
is started again there (the directory's lock is its proof that the one before is gone) does not wait for the end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from spaces_platform.errors import Conflict, PlatformError, Superseded
from spaces_platform.models import Lease
from spaces_platform.store import Store

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
LOOK_SECONDS = 0.5
NAME = "control"


class ControlLease:
    """Thread-safe, as far as one thread renews it."""

    def __init__(self, store: Store, holder: str, *, seconds: float = LEASE_SECONDS) -> None:
        self.store, self.holder, self.seconds = store, holder, seconds

    def acquire(self, stopping: threading.Event) -> None:
        """Take the lease; the store's writes depend on it from now on.

        Waits for the end of one that is not renewed any longer. Raises Conflict as soon as another holder is seen to
        live, or when `stopping` is set; Unavailable.
        """
        self.store.term = None
        first: float | None = None
        while True:
            held = self._take()
            if held is None:
                return
            first = held.expires_at if first is None else first
            if held.expires_at != first or stopping.wait(LOOK_SECONDS):
                raise Conflict(
                    f"Another control plane works on this database: {held.holder}. Stop it first, or give this one a "
                    "database of its own."
                )

    def _take(self) -> Lease | None:
        """Take it where that is allowed, else return it as it is."""
        with self.store.write() as tx:
            now = tx.server_time()
            row = tx.get(Lease, NAME) or Lease(name=NAME, holder=self.holder, term=0, expires_at=0.0)
            if row.holder != self.holder and row.expires_at > now:
                return row
            log.info("lease taken", extra={"term": row.term + 1, "before": row.holder})
            row.holder, row.term, row.expires_at = self.holder, row.term + 1, now + self.seconds
            tx.add(row)
            term = row.term
        self.store.term = term
        return None

    def keep(self, stopping: threading.Event, superseded: Callable[[], None]) -> None:
        """Renew it until `stopping` is set; call `superseded` and end once somebody else has taken it."""
        while not stopping.wait(self.seconds / 3):
            try:
                self.renew()
            except Superseded as exc:
                log.error("this control plane ends: %s", exc)
                superseded()
                return
            except PlatformError as exc:
                # Nobody else can take it either while the database is away.
                log.warning("lease not renewed: %s", exc)

    def give_back(self) -> None:
        """As `release`, at the end of a process: what fails is logged, and nothing not held is given back."""
        if self.store.term is None:
            return
        try:
            self.release()
        except PlatformError as exc:
            log.warning("the lease was not given back, and ends by itself: %s", exc)

    def renew(self) -> None:
        """Raises Superseded where somebody else has taken it, Unavailable."""
        self._set(self.seconds)

    def release(self) -> None:
        """Another may have it at once. Raises what `renew` raises."""
        self._set(0.0)

    def _set(self, seconds: float) -> None:
        with self.store.write() as tx:
            row = tx.get(Lease, NAME)
            if row is None:
                raise Superseded("The lease of this control plane is not in the database any longer.")
            row.expires_at = tx.server_time() + seconds if seconds else 0.0
            tx.add(row)
