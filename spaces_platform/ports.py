"""The protocols between the platform and its technologies, and the small values they speak.

Each has two real implementations (or a process boundary) behind it and one contract suite in tests/contracts.
The Builder protocol lives with its values in `builders.types`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from builders.types import SourceTree


# --- running ------------------------------------------------------------------------------------
class RunStatus(StrEnum):
    """What an orchestrator sees of one deployment."""

    STARTING = "STARTING"
    READY = "READY"
    FROZEN = "FROZEN"
    """Was READY; holds its memory and gets no processor until it is thawed."""
    EXITED = "EXITED"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one app may use."""

    cpus: float = 2.0
    memory: int = 2 << 30
    """Bytes."""
    processes: int = 512
    disk: int = 4 << 30
    """Bytes it may write."""
    log_bytes: int = 4 << 20
    """Bytes of output kept; older output is dropped with a mark."""
    volume: int = 0
    """Bytes of the Space's persistent volume at `/data`; 0: none. Only containers have one."""


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """Everything needed to start one deployment; nothing is looked up later."""

    id: int
    space_id: int
    space: str
    """`owner/name`, for people and logs."""
    artifact_ref: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Holds secrets: never log it."""
    app_port: int = 7860
    base_path: str = "/"
    resources: Resources = field(default_factory=Resources)
    gpus: tuple[str, ...] = ()
    """Ids of the accelerators that are its own, as the engine names them."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One deployment as it is now."""

    status: RunStatus
    endpoint: str | None = None
    """`127.0.0.1:40001`; known from the start on, answers once READY."""
    exit_code: int | None = None
    """Of an EXITED one: 0 to 255, or minus the signal number; None where it cannot be known."""
    out_of_memory: bool = False
    hindrance: str = ""
    """Of an EXITED one that the machine could not run: `disk_full` or `machine`; `probe` has the words."""
    listening: tuple[str, ...] = ()
    """`address:port` pairs the app listens on, as far as they can be seen; tells a wrong port."""
    probe: str = ""
    """What the last probe found, in words."""
    started_at: datetime | None = None
    ready_at: datetime | None = None
    isolation: str = ""
    """What isolation holds, in words: `bubblewrap, own uid`."""


@dataclass(frozen=True, slots=True)
class LogLine:
    n: int
    """Number of the line in its stream, from 1, without gaps between calls."""
    at: datetime
    text: str


@dataclass(frozen=True, slots=True)
class Isolation:
    """How well apps are kept apart here, as a self-check found it."""

    level: str
    words: str
    """One line for people."""
    holds: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


class Orchestrator(Protocol):
    """Runs deployments. Every method is idempotent and returns within a second; none waits for an app."""

    def start(self, spec: DeploymentSpec) -> None:
        """Start it unless it is known already. Raises Unavailable (try again), Invalid (never will)."""

    def observe(self) -> Mapping[int, Observation]:
        """All deployments this orchestrator knows: running, and ended ones not yet stopped."""

    def logs(self, deployment_id: int, after: int = 0) -> Sequence[LogLine]:
        """Lines with n > after. Of an unknown deployment: nothing. Kept after stop() until `forget`."""

    def stop(self, deployment_id: int, grace: float = 10.0) -> None:
        """Ask it to end (SIGTERM), by force after `grace` seconds; returns at once. Stopping the absent is success."""

    def forget(self, deployment_id: int) -> None:
        """Remove what is left of a stopped deployment: its logs and scratch files."""

    def close(self) -> None:
        """Let go of what this process holds for it. What runs goes on, and is found by the next one."""


@runtime_checkable
class Freezer(Protocol):
    """What some orchestrators can do besides: keep an idle app in memory, without processor time. Idempotent, quick."""

    def freeze(self, deployment_id: int) -> None:
        """READY becomes FROZEN. Freezing what is not READY changes nothing. Raises Unavailable."""

    def thaw(self, deployment_id: int) -> None:
        """FROZEN becomes READY: it answers as soon as this returns. Raises Unavailable."""

    def memory_in_use(self, deployment_id: int) -> int:
        """Bytes the deployment holds now, without what the kernel could take back at once; 0 where unknown."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator that is given to one deployment at a time."""

    id: str
    """As the driver and the engine name it: `GPU-1b2c…`."""
    model: str
    """`Tesla T4`."""


@runtime_checkable
class GpuHost(Protocol):
    """What an orchestrator is that can give deployments accelerators."""

    def gpus(self) -> Sequence[Gpu]:
        """All that deployments can have."""


@dataclass(frozen=True, slots=True)
class VolumeUse:
    """One volume as it is now. Bytes."""

    size: int
    """What it is to hold, its file system's own tables included."""
    used: int
    """What it takes of the machine's disk."""
    snapshots: int
    """What its snapshots take of the machine's disk, together."""


SNAPSHOT_NAME = "%Y%m%dT%H%M%S%fZ"
"""The name of a snapshot is when it was taken, UTC; a later one has a greater name, whatever the clock does."""


class Volumes(Protocol):
    """The persistent volumes of Spaces, mounted at `/data`. A volume is made at its Space's first start.

    All apps of a Space have it at once: an old and a new version for the moment of a swap. A start that asks for more
    makes it larger, also while another one has it where the machine lets it, else the next start that has it alone.
    None ever makes it smaller.
    """

    def use(self, space_id: int) -> VolumeUse | None:
        """How large it is; None before its Space's first start."""

    def snapshot(self, space_id: int) -> str:
        """A consistent copy of the volume as it is; its name. The oldest of too many go.

        Writers wait until it is taken. Raises NotFound, DiskFull.
        """

    def snapshots(self, space_id: int) -> Sequence[str]:
        """Names, oldest first."""

    def restore(self, space_id: int, name: str) -> None:
        """Put a snapshot in the volume's place, whole or not at all; snapshots stay.

        Raises NotFound; Conflict while an app has the volume.
        """

    def remove(self, space_id: int) -> None:
        """Delete the volume and its snapshots. Removing the absent is success.

        Raises Unavailable while an app has the volume.
        """


@runtime_checkable
class VolumeHost(Protocol):
    """What an orchestrator is that can give Spaces persistent volumes."""

    def persistent(self) -> Volumes | None:
        """None where this machine cannot make them."""


# --- repositories -------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class CommitInfo:
    id: str
    title: str
    message: str
    author: str
    date: datetime


@dataclass(frozen=True, slots=True)
class PathEntry:
    """One entry of a listing, in the Hub's words."""

    type: str
    """`file` or `directory`."""
    path: str
    oid: str
    size: int
    mode: str = "100644"


@dataclass(frozen=True, slots=True)
class FileChange:
    """Write (`content` given) or delete (`content` None) one path; a deleted directory takes all below it."""

    path: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class RefUpdate:
    ref: str
    old: str
    new: str


class Repo(Protocol):
    """One bare repository. Every path and ref argument is validated; bad ones raise Invalid."""

    @property
    def path(self) -> Path: ...

    def head(self, ref: str = "refs/heads/main") -> str | None:
        """The commit a ref points to, or None."""

    def resolve(self, rev: str) -> str:
        """Commit id of a branch, tag, (short) commit id or `HEAD`. Raises RevisionNotFound."""

    def tree(self, commit: str) -> SourceTree:
        """The whole tree of a commit."""

    def list(self, commit: str, path: str = "", recursive: bool = False) -> Sequence[PathEntry]:
        """Entries below a path. Raises EntryNotFound."""

    def stat(self, commit: str, path: str) -> PathEntry:
        """One entry. Raises EntryNotFound."""

    def read(self, commit: str, path: str) -> Iterator[bytes]:
        """A file's content in chunks. Raises EntryNotFound."""

    def log(self, rev: str, limit: int = 50, skip: int = 0) -> Sequence[CommitInfo]: ...

    def refs(self) -> Mapping[str, str]:
        """refs/heads/* and refs/tags/* -> commit."""

    def commit(
        self,
        ref: str,
        changes: Sequence[FileChange],
        *,
        message: str,
        author: str,
        email: str,
        parent: str | None = None,
    ) -> str:
        """One commit on top of `ref`, durable when it returns. `parent` given and not the head: Stale.

        Raises EntryNotFound (deleting the absent), Invalid / Unprocessable (a path or content the push rules refuse).
        """

    def update_ref(self, ref: str, new: str | None, old: str | None = None) -> None:
        """Create, move or (new None) delete a ref, compare-and-set on `old` where given."""


class RepoStore(Protocol):
    def create(self, repo_id: str) -> Repo:
        """Create it, or return the one that exists."""

    def open(self, repo_id: str) -> Repo:
        """Raises RepoNotFound."""

    def delete(self, repo_id: str) -> None:
        """Deleting the absent is success."""

    def advertise(self, repo: Repo, service: str, protocol: str) -> AsyncIterator[bytes]:
        """Body of `GET info/refs?service=…`."""

    def serve(
        self,
        repo: Repo,
        service: str,
        protocol: str,
        body: AsyncIterator[bytes],
        *,
        on_pushed: Callable[[Sequence[RefUpdate]], Awaitable[Sequence[str]]] | None = None,
        advise: Callable[[SourceTree], Sequence[str]] | None = None,
    ) -> AsyncIterator[bytes]:
        """Run `git upload-pack` / `receive-pack` over one request, streamed both ways.

        `on_pushed` is awaited with the refs that moved, after they are durable and before the client is told; the
        lines it returns are shown to the client; where it raises, the client's push fails and the exception comes
        through. `advise` gives lines on the tree pushed to main, in a worker thread, before the push is stored.
        """

    def maintain(self, repo: Repo) -> None:
        """Repack and drop what is unreachable or left by killed processes. Takes up to minutes; safe beside pushes."""


# --- logs, queue, clock -------------------------------------------------------------------------
class LogStore(Protocol):
    """Append-only text streams by name (`build/17`)."""

    def append(self, stream: str, lines: Iterable[str]) -> None: ...

    def read(self, stream: str, after: int = 0) -> Sequence[LogLine]: ...

    def delete(self, stream: str) -> None: ...


class Task(StrEnum):
    RECONCILE = "reconcile"
    """Look at this Space."""
    BUILD = "build"
    """There is a build to do; which one is chosen by who does it."""
    HOUSEKEEPING = "housekeeping"
    """Clean up, if it is time; the id means nothing."""


class Queue(Protocol):
    """A hint to look at a row. Losing one costs latency, never correctness; doubling one costs nothing."""

    def send(self, task: Task, id: int) -> None: ...

    def start(self, run: Callable[[Task, int], None]) -> None:
        """Begin to hand hints to `run`, where this process is to work on them."""

    def close(self) -> None:
        """Take no more work and wait, within bounds, for what is under way."""


class TxtRecords(Protocol):
    """The text records of the public DNS."""

    def txt(self, name: str) -> frozenset[str]:
        """All of them at `name`; empty where there are none. Raises Unavailable where nobody can tell."""


class Clock(Protocol):
    def now(self) -> datetime:
        """Aware, UTC. The only source of time for decisions."""
