"""What is known of the images of apps, and fetching those that the engine does not have from their registry.

Owns the memory of facts and the fetches under way. A fetch takes as long as an image is large, so nobody waits for it:
who asks is told that it goes on, and asks again. Invariant: an image is run only if the engine knows it by the very
content that its artifact names.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

from spaces_platform.errors import Invalid, NotFound, PlatformError, Unavailable
from spaces_platform.ports import DeploymentSpec

from . import spec as pure
from .engine import Engine
from .snapshots import Snapshots
from .spec import ImageFacts

KEPT = 512
"""Images whose facts are remembered; an image that is named by its content never changes."""
FETCHES = 2
"""Images fetched at once."""
PATIENCE = 0.5
"""Seconds that a caller waits for a fetch, as a small image from near is there at once."""


@dataclass(slots=True)
class _Fetch:
    ended: threading.Event = field(default_factory=threading.Event)
    error: PlatformError | None = None


class Images:
    """Safe to call from any thread."""

    def __init__(self, engine: Engine, snapshots: Snapshots | None = None) -> None:
        """`snapshots`: who knows where layers are, if the engine itself does not."""
        self._engine, self._snapshots = engine, snapshots
        self._facts: dict[str, ImageFacts] = {}
        self._fetches: dict[str, _Fetch] = {}
        self._lock = threading.Lock()

    def facts(self, spec: DeploymentSpec) -> ImageFacts:
        """Of the deployment's image. Raises Invalid where it is nowhere, Unavailable while it is fetched."""
        reference = pure.image_reference(spec.artifact_ref)
        with self._lock:
            known = self._facts.get(reference)
        if known is not None:
            return known
        try:
            found = self._engine.image(reference)
        except NotFound as error:
            if "@" not in reference:
                raise Invalid(f"{spec.space}: image {reference} is not there; build it again") from error
            self._fetch(spec, reference)
            found = self._engine.image(reference)
        facts = pure.image_facts(found)
        if self._snapshots is not None:
            try:
                facts = replace(facts, layers=self._snapshots.folders(facts.diff_ids))
            except NotFound as error:
                raise Invalid(f"{spec.space}: layers of its image are not there ({error}); build it again") from error
        with self._lock:
            if len(self._facts) >= KEPT:
                self._facts.clear()
            self._facts[reference] = facts
        return facts

    def is_here(self, spec: DeploymentSpec) -> bool:
        """Whether the engine has the deployment's image now. Raises Unavailable."""
        try:
            self._engine.image(pure.image_reference(spec.artifact_ref))
        except NotFound:
            return False
        return True

    def forget(self) -> None:
        """What is remembered is not true any more: images were removed."""
        with self._lock:
            self._facts.clear()

    def _fetch(self, spec: DeploymentSpec, reference: str) -> None:
        """Returns when the engine has it. Raises Unavailable while that takes longer, or what it failed with."""
        with self._lock:
            fetch = self._fetches.get(reference)
            if fetch is None:
                if len(self._fetches) >= FETCHES:
                    raise Unavailable(f"{spec.space}: its image waits for {FETCHES} others to be fetched")
                fetch = self._fetches[reference] = _Fetch()
                threading.Thread(target=self._run, args=(reference, fetch), name="docker-fetch", daemon=True).start()
        if not fetch.ended.wait(PATIENCE):
            raise Unavailable(f"{spec.space}: its image {reference} is being fetched from its registry")
        with self._lock:
            if self._fetches.get(reference) is fetch:
                del self._fetches[reference]
        if isinstance(fetch.error, NotFound):
            raise Invalid(f"{spec.space}: {fetch.error}; build it again") from fetch.error
        if fetch.error is not None:
            raise Unavailable(f"{spec.space}: {fetch.error}; start its registry") from fetch.error

    def _run(self, reference: str, fetch: _Fetch) -> None:
        try:
            self._engine.pull(reference)
        except PlatformError as error:
            fetch.error = error
        finally:
            fetch.ended.set()
