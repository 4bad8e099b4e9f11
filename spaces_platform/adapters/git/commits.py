"""Commits without a work tree: packs the changes and pushes them through `git receive-pack`.

It owns turning changes into a commit on a ref. Going through receive-pack gives an API commit the quarantine, fsck,
rules, compare-and-set and durability of a push, by the same code. Invariant: the ref moves from exactly the commit
the changes were applied to, or not at all.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spaces_platform.adapters.git.durable import sync_push
from spaces_platform.adapters.git.hook import HookLine, Judge
from spaces_platform.adapters.git.objects import headers, reading
from spaces_platform.adapters.git.packing import NewObjects, TreeEdit, commit_text
from spaces_platform.adapters.git.pktline import ReportHold, push_command
from spaces_platform.adapters.git.process import GitAt, GitError, end_group, pipe
from spaces_platform.adapters.git.push_check import Verdict
from spaces_platform.adapters.git.push_rules import ZERO, PushLimits, path_problem
from spaces_platform.errors import Invalid, TooLarge, Unavailable, Unprocessable
from spaces_platform.ports import FileChange, RefUpdate


@dataclass(frozen=True, slots=True)
class CommitText:
    message: str
    author: str
    email: str


@dataclass(frozen=True, slots=True)
class MadeCommit:
    id: str
    objects: NewObjects
    """What must be stored for it."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """How a push of one ref from inside ended. `moved` False with an accepted verdict: the ref was not at `old`."""

    moved: bool
    verdict: Verdict | None
    said: str


def check_changes(changes: Sequence[FileChange], limits: PushLimits) -> None:
    """Raises Invalid for a path the push rules refuse, TooLarge for content past their limits."""
    for change in changes:
        path = change.path.removesuffix("/") if change.content is None else change.path
        problem = path_problem(path.encode("utf-8", "surrogateescape"), limits)
        if problem is not None:
            raise Invalid(f"{problem.text} {problem.fix}")
    total = sum(len(change.content or b"") for change in changes)
    if total > limits.pack_bytes:
        raise TooLarge(f"The commit holds {total} bytes; the limit is {limits.pack_bytes}.")


def make_commit(at: GitAt, head: str | None, changes: Sequence[FileChange], text: CommitText) -> MadeCommit:
    """The new commit, or `head` itself where the changes change nothing. Raises EntryNotFound, Unprocessable."""
    objects = NewObjects()
    root = None if head is None else headers(at, [f"{head}^{{tree}}"])[0].oid
    with reading(at) as old:
        edit = TreeEdit(root, lambda oid: old.read(oid)[1])
        for change in changes:
            edit.apply(change, objects)
        tree = edit.write(objects)
    if head is not None and tree == root:
        return MadeCommit(head, NewObjects())
    raw = commit_text(tree, head, message=text.message, author=text.author, email=text.email, at=int(time.time()))
    return MadeCommit(objects.add("commit", raw), objects)


def push(at: GitAt, update: RefUpdate, pack: Iterable[bytes], judge: Judge) -> PushResult:
    """Push one ref update with its objects. Durable when it returns `moved`. Raises Unavailable where git fails."""
    with tempfile.TemporaryFile() as stderr, HookLine(judge) as line:
        child = subprocess.Popen(
            at.git.argv("receive-pack", "--stateless-rpc", str(at.path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd="/",
            env=at.git.environment(at.path, line.env),
            pass_fds=line.child_fds,
            start_new_session=True,
        )
        timer = threading.Timer(at.git.limits.seconds, end_group, (child.pid,))
        timer.daemon = True
        timer.start()
        try:
            line.started()
            hold = ReportHold(sideband=False)
            try:
                with pipe(child.stdin) as stdin:
                    stdin.write(push_command(update))
                    for piece in pack:
                        stdin.write(piece)
            except BrokenPipeError:
                pass  # its report or its exit status tells why it took no more
            hold.feed(pipe(child.stdout).read())
            status = child.wait()
        finally:
            timer.cancel()
            end_group(child.pid)
            child.wait()
            pipe(child.stdout).close()
        stderr.seek(0)
        said = stderr.read(4096).decode("utf-8", "replace").strip()
    unpack, refs = hold.results()
    moved = status == 0 and refs.get(update.ref, "") is None
    if moved:
        sync_push(at.path, [update.ref])
    elif status != 0 or unpack != "ok":
        error = GitError("receive-pack", status, f"{unpack} {said}")
        raise Unavailable(f"The commit was not stored: {error}") from error
    return PushResult(moved, line.verdict, said)


def refused(result: PushResult) -> Unprocessable | None:
    """The error for a commit that the push rules refuse."""
    if result.verdict is None or result.verdict.accepted:
        return None
    problems = result.verdict.problems
    return Unprocessable(" ".join(f"{p.text} {p.fix}" for p in problems[:5]), reasons=[p.code for p in problems])


__all__ = ["ZERO", "CommitText", "check_changes", "make_commit", "push", "refused"]
