"""One bare repository: reading, listing, committing, moving refs. A `spaces_platform.ports.Repo`.

It owns the meaning of revisions, paths and refs of one repository; transfers over HTTP are in `transport`. Invariant:
no string of a caller reaches git before it is validated, and refs change by compare-and-set only.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from spaces_platform.adapters.git import commits
from spaces_platform.adapters.git.durable import sync_push
from spaces_platform.adapters.git.hook import Judge
from spaces_platform.adapters.git.objects import GitSourceTree, Materialise, headers
from spaces_platform.adapters.git.process import CHUNK, GitAt, GitError, pipe
from spaces_platform.adapters.git.push_check import MAIN, Advise, FactsMemo, PushCheck
from spaces_platform.adapters.git.push_rules import TREE, ZERO, PushLimits, path_problem, ref_problem
from spaces_platform.errors import Conflict, EntryNotFound, Invalid, RevisionNotFound, Stale, Unavailable
from spaces_platform.ports import CommitInfo, FileChange, PathEntry, RefUpdate

_OID = re.compile(r"[0-9a-f]{40}")
_SHORT_OID = re.compile(r"[0-9a-f]{4,40}")
_LOCK_AGE = 60.0
_LOCK_SURE = 2.0
_QUARANTINE_AGE = 2 * 3600.0
_COMMIT_TRIES = 5


@dataclass(frozen=True)
class GitRepo:
    """Made by `GitRepoStore`. Safe to use from several threads."""

    at: GitAt
    limits: PushLimits
    memo: FactsMemo
    started: float = field(default_factory=time.time)
    """When this process began to serve (seconds since 1970): older locks are left from a killed one."""
    materialise: Materialise | None = None

    @property
    def path(self) -> Path:
        return self.at.path

    # --- refs and revisions ----------------------------------------------------------------------------------------
    def head(self, ref: str = MAIN) -> str | None:
        """Read from the files (loose ref, then packed-refs), so that a sweep over thousands costs no process."""
        self._check_ref(ref)
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            text = (self.path / ref).read_text("ascii").strip()
            if _OID.fullmatch(text):
                return text
        with suppress(FileNotFoundError):
            for line in (self.path / "packed-refs").read_text("utf-8").splitlines():
                if line.endswith(f" {ref}") and _OID.fullmatch(line[:40]):
                    return line[:40]
        return None

    def resolve(self, rev: str) -> str:
        missing = RevisionNotFound(f"Invalid rev id: {rev[:200]}")
        names = [MAIN] if rev == "HEAD" else [f"refs/heads/{rev}", f"refs/tags/{rev}", rev]
        names = [name for name in names if ref_problem(name, self.limits) is None]
        if _SHORT_OID.fullmatch(rev):
            names.append(rev)
        if not names:
            raise missing
        for header in headers(self.at, [f"{name}^{{commit}}" for name in names]):
            if header.kind == "commit":
                return header.oid
        raise missing

    def refs(self) -> Mapping[str, str]:
        form = "--format=%(refname) %(objectname) %(*objectname)"
        found = (line.split() for line in self.at.lines("for-each-ref", form, "refs/heads/", "refs/tags/"))
        return {words[0]: words[-1] for words in found}

    def update_ref(self, ref: str, new: str | None, old: str | None = None) -> None:
        """`old` of 40 zeros: the ref must not exist yet. Raises Conflict (it exists), Stale, RevisionNotFound.

        Deleting what is absent is success, unless `old` is given.
        """
        self._check_ref(ref)
        if new is None and ref == MAIN:
            raise Invalid(f"Cannot delete {MAIN}")
        for oid in (new, old):
            if oid is not None and not _OID.fullmatch(oid):
                raise Invalid(f"Not a commit id: {oid[:80]!r}")
        if new is not None and headers(self.at, [f"{new}^{{commit}}"])[0].kind != "commit":
            raise RevisionNotFound(f"Invalid rev id: {new}")
        if new is not None and self.head(ref) is None and len(self.refs()) >= self.limits.refs:
            raise Conflict(f"The repository has {self.limits.refs} branches and tags, which is the limit; delete one.")
        args = ["-d", ref] if new is None else [ref, new]
        self.drop_left_overs()
        try:
            self.at.run("update-ref", "--no-deref", *args, *([] if old is None else [old]))
        except GitError as error:
            now = self.head(ref)
            if old == ZERO and now is not None:
                raise Conflict(f"Reference {ref} already exists") from error
            if old is not None and now != old:
                raise Stale() from error
            if "not a directory" in error.stderr.lower() or "exists; cannot create" in error.stderr:
                raise Conflict(
                    f"{ref} stands in the way of a branch or tag of a similar name, or the other way"
                ) from error
            raise Unavailable(f"{ref} could not be moved: {error.stderr.strip()}") from error
        sync_push(self.path, [ref])

    def _check_ref(self, ref: str) -> None:
        problem = ref_problem(ref, self.limits)
        if problem is not None:
            raise Invalid(f"{problem.text} {problem.fix}")

    def drop_left_overs(self) -> None:
        """Remove what killed processes left: ref locks, without which no push would ever pass again, and quarantines.

        git holds such a lock for milliseconds; one from before this process, or older than a minute, has no owner.
        A quarantine lasts as long as its transfer.
        """
        now = time.time()
        for lock in [*(self.path / "refs").rglob("*.lock"), *self.path.glob("*.lock")]:
            with suppress(FileNotFoundError):
                made = lock.stat().st_mtime
                if now - made > _LOCK_AGE or (made < self.started and now - made > _LOCK_SURE):
                    lock.unlink()
        for quarantine in (self.path / "objects").glob("tmp_objdir-*"):
            with suppress(FileNotFoundError):
                if now - quarantine.stat().st_mtime > _QUARANTINE_AGE:
                    shutil.rmtree(quarantine)

    # --- reading ---------------------------------------------------------------------------------------------------
    def tree(self, commit: str) -> GitSourceTree:
        return GitSourceTree(self.at, self._commit(commit), self.limits, self.materialise)

    def list(self, commit: str, path: str = "", recursive: bool = False) -> Sequence[PathEntry]:
        path = self._check_path(path)
        args = ["-r", "-t"] if recursive else []
        try:
            output = self.at.run("ls-tree", "-l", "-z", *args, f"{self._commit(commit)}:{path}")
        except GitError as error:
            if path:
                raise EntryNotFound(f"Entry not found: {path}") from error
            raise RevisionNotFound(f"Invalid rev id: {commit}") from error
        above = f"{path}/" if path else ""
        return [_path_entry(record, above) for record in output.split(b"\0") if record]

    def stat(self, commit: str, path: str) -> PathEntry:
        path = self._check_path(path)
        if not path:
            return PathEntry("directory", "", self.tree(commit).id, 0, TREE)
        output = self.at.run("ls-tree", "-l", "-z", "--full-tree", self._commit(commit), "--", path)
        for record in output.split(b"\0"):
            if record:
                return _path_entry(record, "")
        raise EntryNotFound(f"Entry not found: {path}")

    def read(self, commit: str, path: str) -> Iterator[bytes]:
        entry = self.stat(commit, path)
        if entry.type != "file":
            raise EntryNotFound(f"Entry not found: {path} is a folder")
        return self._blob(entry.oid)

    def _blob(self, oid: str) -> Iterator[bytes]:
        with self.at.process("cat-file", "blob", oid, seconds=3600) as child:
            while chunk := pipe(child.stdout).read(CHUNK):
                yield chunk

    def log(self, rev: str, limit: int = 50, skip: int = 0) -> Sequence[CommitInfo]:
        form = "--format=%H%n%an%n%aI%n%B"
        bounds = [f"--max-count={max(0, limit)}", f"--skip={max(0, skip)}"]
        output = self.at.run("log", "-z", "--no-show-signature", form, *bounds, self.resolve(rev), "--")
        return [_commit_info(record) for record in output.decode("utf-8", "replace").split("\0") if record]

    def _commit(self, commit: str) -> str:
        return commit if _OID.fullmatch(commit) else self.resolve(commit)

    def _check_path(self, path: str) -> str:
        path = path.removesuffix("/")
        problem = path_problem(path.encode("utf-8", "surrogateescape"), self.limits) if path else None
        if problem is not None:
            raise Invalid(problem.text)
        return path

    # --- writing ---------------------------------------------------------------------------------------------------
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
        """Changes apply in order; a change that leaves the tree as it is gives the head, and no new commit."""
        self._check_ref(ref)
        commits.check_changes(changes, self.limits)
        text = commits.CommitText(message, author, email)
        for _ in range(_COMMIT_TRIES):
            head = self.head(ref)
            if parent is not None and parent != head:
                raise Stale()
            made = commits.make_commit(self.at, head, changes, text)
            if made.id == head:
                return made.id
            self.drop_left_overs()
            update = RefUpdate(ref, head or ZERO, made.id)
            result = commits.push(self.at, update, made.objects.pack(), self.judge(None))
            if result.moved:
                return made.id
            if (error := commits.refused(result)) is not None:
                raise error
            if self.head(ref) == head:
                raise Unavailable(f"The commit was not stored: {ref} could not be moved. {result.said}")
        if parent is not None:
            raise Stale()
        raise Unavailable(f"{ref} moved {_COMMIT_TRIES} times while this commit was made; try again.")

    def judge(self, advise: Advise | None) -> Judge:
        """The decision that the hook of a push into this repository asks for."""
        check = PushCheck(self.at, self.limits, self.memo, advise)
        return lambda quarantine, updates: check.judge(quarantine, updates, self.refs())


def _path_entry(record: bytes, above: str) -> PathEntry:
    """One `<mode> <type> <oid> <size>TAB<path>` of `git ls-tree -l -z`."""
    meta, _, raw = record.partition(b"\t")
    mode, kind, oid, size = meta.decode("ascii").split()
    kind = "directory" if kind == "tree" else "file"
    return PathEntry(kind, above + raw.decode("utf-8", "replace"), oid, int(size) if size.isdigit() else 0, mode)


def _commit_info(record: str) -> CommitInfo:
    oid, author, date, text = record.split("\n", 3)
    title, _, message = text.strip().partition("\n")
    return CommitInfo(oid, title, message.strip(), author, datetime.fromisoformat(date))
