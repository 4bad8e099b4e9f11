"""The words a build speaks: the values and the Builder protocol.

Everything here is frozen and serialisable, so that a plan can be compared, stored, printed and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One file of a source tree."""

    path: str
    """Path from the root, `/` separated, never absolute, never with `..`."""
    mode: str
    """`100644`, `100755` or `120000` (symbolic link, its target inside the tree)."""
    oid: str
    """Content id: the git blob SHA-1 (40 hex)."""
    size: int
    """Bytes."""


class SourceTree(Protocol):
    """A read-only tree at one commit. Reading it never needs a work tree."""

    @property
    def id(self) -> str:
        """Content id of the whole tree: the git tree SHA-1 (40 hex)."""

    def entries(self) -> Sequence[TreeEntry]:
        """Every file, sorted by path."""

    def read(self, path: str, limit: int = 1_000_000) -> bytes:
        """The first `limit` bytes of a file. Raises FileNotFoundError."""

    def export(self, dest: Path) -> None:
        """Write all files below `dest` (an existing empty directory). Never follows a link out of it."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """How an artifact is started. The same words hold for a process and for a container."""

    argv: tuple[str, ...]
    """Run in the app's directory with the environment's `bin` first on PATH."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Extra environment variables; `{PORT}` in a value is replaced by the port the app must serve."""
    app_port: int = 7860
    """The port the app serves in a container. A process gets a free port instead, told in PORT."""
    base_path: str = "/"
    """First path that is probed and opened."""
    start_timeout: int = 1800
    """Seconds from start to first healthy answer before the start counts as failed."""


@dataclass(frozen=True, slots=True)
class EnvironmentPlan:
    """The dependency layer: everything that is installed, and nothing of the app."""

    id: str
    """Content id: equal inputs give equal ids, so that the layer is built once."""
    python: str
    """`3.11`; the interpreter that is asked for. Empty for an environment without Python."""
    steps: tuple[InstallStep, ...] = ()
    needs_tree: bool = False
    """Whether the steps read files of the app (`./package` in requirements.txt); its id then covers the tree."""
    system: tuple[str, ...] = ()
    """Debian packages (packages.txt); container builds only."""


@dataclass(frozen=True, slots=True)
class InstallStep:
    """One `install` of the environment, in order."""

    label: str
    """What a person reads in the log: `requirements.txt`, `gradio 5.49.1`."""
    requirements: tuple[str, ...] = ()
    """Requirement specifiers."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File name -> text of requirement files (or pyproject.toml and uv.lock) to install from."""
    kind: str = "requirements"
    """`requirements` | `project` (pyproject.toml, with uv.lock where there is one)."""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build will do: a pure function of (source tree, configuration, catalogue)."""

    id: str
    """Content id of the whole plan; the same id never needs building again."""
    tree_id: str
    sdk: str
    environment: EnvironmentPlan
    run: RunPlan
    build_command: tuple[str, ...] = ()
    """Static Spaces: the command that makes the site."""
    output_dir: str = ""
    """Static Spaces: what of the tree is served, relative to its root; empty for all of it."""
    needs_container: tuple[str, ...] = ()
    """Reasons why this plan cannot be built without containers (`packages.txt`, `sdk: docker`)."""
    warnings: tuple[str, ...] = ()
    salt: str = ""
    """Changed by a factory rebuild, which shares no cached step with the builds before it."""
    preload: tuple[str, ...] = ()
    """Entries of preload_from_hub, as `preload.parse` takes them."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a hub's repository."""

    size: int
    """Bytes; -1 where the hub does not tell."""
    etag: str = ""
    """What the hub calls its content: git's blob id, SHA-256 of a large file, or a word of its own."""


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository of a hub at one commit."""

    kind: str
    """`model`, `dataset` or `space`."""
    name: str
    """`owner/name`, or `name`."""
    commit: str
    """40 hex digits."""
    files: Mapping[str, HubFile] = field(default_factory=dict)


class HubMissing(Exception):
    """This platform has no hub for such repositories. Its text says why, as the end of a sentence."""


class Hub(Protocol):
    """Repositories that builds may read, with the rights of one owner."""

    def find(self, kind: str, name: str, revision: str) -> HubRepo:
        """A repository at `main` or at a commit. Raises HubMissing, or BuildError where it is not there for this owner
        (`hub_repo_not_found`, `hub_revision_not_found`) or the hub does not answer (`hub_unreachable`)."""

    def open(self, repo: HubRepo, path: str) -> AbstractContextManager[tuple[str, Iterator[bytes]]]:
        """A file's etag (empty: as it was listed), and its bytes in chunks. Raises BuildError, also between chunks."""


@dataclass(frozen=True, slots=True)
class BuildInputs:
    """What a build is given besides its plan. None of it enters the plan's id."""

    space: str = ""
    """`owner/name`: for labels, and where caches are kept apart."""
    commit: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Public; build arguments of a Dockerfile that declares them."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Files at `/run/secrets/NAME` of the RUN steps that mount them; in no layer, command line or log."""
    hub: Hub | None = None
    """Where preload_from_hub is fetched, with the rights of the Space's owner. Its token never leaves it."""


NO_INPUTS = BuildInputs()


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a green build leaves."""

    ref: str
    """Opaque to all but the builder and the orchestrator of the same kind: `venv:<plan id>`, an image digest."""
    lock: str = ""
    """What was installed, exactly: requirement lines with pinned versions."""
    size: int = 0
    """Bytes on disk that this artifact added."""
    reused_environment: bool = False
    sbom: str = ""
    """Software bill of materials, CycloneDX JSON; empty where the builder makes none."""
    dockerfile: str = ""
    """What BuildKit was given; empty where there are no containers."""


class Phase(StrEnum):
    """The named parts of a deploy, in order. Every wait of an owner has one of these names."""

    QUEUED = "queued"
    CLONING = "cloning"
    RESOLVING = "resolving"
    INSTALLING = "installing"
    BUILDING = "building"
    SEALING = "sealing"
    STARTING = "starting"
    PROBING = "probing"


class BuildLog(Protocol):
    """Where a build writes. Lines are kept, phases are shown live."""

    def line(self, text: str) -> None:
        """One line of output, without its newline."""

    def phase(self, phase: Phase, text: str = "") -> None:
        """A phase begins, or goes on with a new text (`42/57`)."""


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What a build may use. Exceeding one ends the build with an error that names it."""

    seconds: float = 1800
    memory: int = 4 << 30
    """Bytes, all processes together."""
    disk: int = 10 << 30
    """Bytes the build may add."""
    processes: int = 512
    preload: int = 10 << 30
    """Bytes of preload_from_hub."""


class BuildError(Exception):
    """A build failed for a reason its owner can act on.

    `reason` is stable and snake_case (`resolver_conflict`, `out_of_memory`, …); `cause` and `fix` are one line each;
    `evidence` are the log lines that show it.
    """

    def __init__(self, reason: str, cause: str, fix: str, evidence: Sequence[str] = ()) -> None:
        super().__init__(f"{cause} {fix}")
        self.reason, self.cause, self.fix, self.evidence = reason, cause, fix, tuple(evidence)


class BuildCancelled(Exception):
    """The build was asked to stop and did."""


class BuilderUnavailable(Exception):
    """What makes the artifacts does not answer (the container engine is away): try again."""


class Builder(Protocol):
    """Makes artifacts. Implementations: venv (uv), BuildKit."""

    def exists(self, artifact_ref: str) -> bool:
        """Whether the artifact is complete and can be started now. Raises BuilderUnavailable."""

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
        """Build to the end, or raise BuildError / BuildCancelled / BuilderUnavailable.

        Atomic: a killed build leaves nothing that `exists`. `owner` names the cache this build may share; no cache is
        written by two owners. Building the same plan with the same inputs twice, also at once, is safe and gives the
        same ref.
        """

    def remove(self, artifact_ref: str) -> None:
        """Delete the artifact; removing the absent is success. Raises BuilderUnavailable."""

    def prune(self) -> int:
        """Free what no artifact needs: caches beyond their bounds, what killed builds left. Bytes freed, about."""

    def free_disk(self) -> int:
        """Bytes that are free where artifacts are kept."""

    def close(self) -> None:
        """Nothing is built here any more: take back what was put up on the machine for builds. Raises nothing."""
