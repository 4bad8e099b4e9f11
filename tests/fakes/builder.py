"""A full Builder in memory: builds what plans ask for, and fails on command."""

from __future__ import annotations

from collections.abc import Callable

from builders.types import (
    NO_INPUTS,
    Artifact,
    BuildCancelled,
    BuildError,
    BuildInputs,
    BuildLog,
    BuildPlan,
    Phase,
    SourceTree,
)


class FakeBuilder:
    """A tree with a file `FAIL` does not build; its text is the reason."""

    def __init__(self) -> None:
        self.artifacts: set[str] = set()
        self.built: list[str] = []
        self.inputs = NO_INPUTS
        """Of the newest build."""
        self.free = 1 << 40
        self.closed = False
        self.before: Callable[[BuildPlan], None] = lambda _plan: None
        """Called in the middle of every build."""

    def exists(self, artifact_ref: str) -> bool:
        return artifact_ref in self.artifacts

    def build(
        self,
        plan: BuildPlan,
        source: SourceTree,
        *,
        owner: str,
        log: BuildLog,
        cancelled: Callable[[], bool],
        inputs: BuildInputs = NO_INPUTS,
    ) -> Artifact:
        self.inputs = inputs
        ref = f"fake:{owner}/{plan.id}"
        if ref in self.artifacts:
            return Artifact(ref, reused_environment=True)
        log.phase(Phase.CLONING)
        names = {entry.path for entry in source.entries()}
        log.phase(Phase.INSTALLING, "1/1")
        self.before(plan)
        if cancelled():
            raise BuildCancelled
        if "FAIL" in names:
            raise BuildError("resolver_conflict", source.read("FAIL").decode(), "Mend it.", ["line 1"])
        self.artifacts.add(ref)
        self.built.append(plan.id)
        return Artifact(ref, lock="six==1.17.0\n", size=1)

    def remove(self, artifact_ref: str) -> None:
        self.artifacts.discard(artifact_ref)

    def prune(self) -> int:
        return 0

    def free_disk(self) -> int:
        return self.free

    def close(self) -> None:
        self.closed = True
