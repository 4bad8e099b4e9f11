"""Pushes that were acknowledged survive the death of every process (T27); the rest is all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spaces_platform.adapters.git import GitRepoStore
from spaces_platform.ports import FileChange
from tests.git.client import Client, new_client
from tests.git.server import TOKEN, serving

ROOT = Path(__file__).parents[2]
SPACE = "o/app"


@contextmanager
def process(root: Path, journal: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as a process of its own, and the remote of its one Space."""
    command = [sys.executable, "-m", "tests.git.server", str(root), str(journal)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        yield child, f"http://user:{TOKEN}@127.0.0.1:{port}/spaces/{SPACE}"
    finally:
        child.kill()
        child.wait()


def check(root: Path, journal: Path, acked: list[str]) -> None:
    """Acknowledged commits are reachable and recorded; what lies there is sound; a new push passes."""
    repo = GitRepoStore(root).open(f"spaces/{SPACE.replace('/', '-')}")
    head = repo.head()
    reachable = {info.id for info in repo.log(head, limit=1000)} if head else set()
    assert set(acked) <= reachable
    recorded = {json.loads(line)[2] for line in journal.read_text().splitlines()} if journal.exists() else set()
    assert set(acked) <= recorded
    subprocess.run(["git", "--git-dir", repo.path, "fsck", "--strict", "--full"], check=True, capture_output=True)


@pytest.mark.parametrize("delay", [0.03, 0.05, 0.07])
def test_server_killed_within_a_push(tmp_path: Path, delay: float) -> None:
    """SIGKILL at several points of a push; restarting is the only repair."""
    root, journal = tmp_path / "repos", tmp_path / "journal"
    client = new_client(tmp_path / "work")
    acked = [client.commit(a="0")]
    with process(root, journal) as (server, url):
        client.push(url)
        for n in range(1, 4):
            commit = client.commit(a=str(n))
            killer = threading.Timer(delay if n == 3 else 60, server.kill)
            killer.start()
            if client.push(url, ok=False).status == 0:
                acked.append(commit)
            killer.cancel()
    check(root, journal, acked)
    with process(root, journal) as (_, url):
        acked.append(client.commit(a="last"))
        client.push(url)
    check(root, journal, acked)


def strace_git(folder: Path, inject: str) -> str:
    """A git whose receive-pack, and all it starts, suffers `inject`."""
    strace, git = shutil.which("strace"), shutil.which("git")
    if strace is None or git is None:
        pytest.skip("strace is not installed: no fault can be injected into git")
    wrapper = folder / "git"
    wrapper.write_text(
        f'#!/bin/sh\n[ "$1" = receive-pack ] || exec {git} "$@"\n'
        f'exec {strace} -f -qq -o /dev/null -e trace=fsync -e inject=fsync:{inject} {git} "$@"\n'
    )
    wrapper.chmod(0o755)
    return str(wrapper)


@pytest.mark.parametrize("when", ["1", "2", "1+"])
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO"])
def test_fault_in_an_fsync_of_git(tmp_path: Path, fault: str, when: str) -> None:
    """git killed at its n-th fsync, or told of a failing disk: no acknowledgement, no damage, and it goes on after."""
    root, journal = tmp_path / "repos", tmp_path / "journal"
    client = new_client(tmp_path / "work")
    with serving(root) as good:
        good.backend.journal = journal
        acked = [client.commit(a="1")]
        client.push(good.remote(SPACE))
    wrapper = strace_git(tmp_path, f"{fault}:when={when}")
    with serving(root, git=wrapper) as bad:
        bad.backend.journal = journal
        commit = client.commit(a="2")
        pushed = client.push(bad.remote(SPACE), ok=False)
        moved = bad.backend.repo(SPACE).head() == commit
        if pushed.status == 0:
            acked.append(commit)
        if when == "1+":
            assert pushed.status != 0
            assert not moved
    check(root, journal, acked)
    for lock in root.rglob("*.lock"):  # as if the machine had been restarted some time later
        os.utime(lock, (time.time() - 3600, time.time() - 3600))
    with serving(root) as good:
        good.backend.journal = journal
        acked.append(client.commit(a="3"))
        client.push(good.remote(SPACE))
    check(root, journal, acked)


def test_a_lock_left_by_a_killed_git_is_dropped(tmp_path: Path) -> None:
    store = GitRepoStore(tmp_path)
    repo = store.create("spaces/1")
    first = repo.commit("refs/heads/main", [FileChange("a", b"1")], message="m", author="a", email="a@b")
    lock = repo.path / "refs" / "heads" / "main.lock"
    lock.touch()
    os.utime(lock, (time.time() - 10, time.time() - 10))
    assert GitRepoStore(tmp_path).open("spaces/1").head() == first
    store = GitRepoStore(tmp_path)
    second = store.open("spaces/1").commit(
        "refs/heads/main", [FileChange("a", b"2")], message="m", author="a", email="a@b"
    )
    assert store.open("spaces/1").head() == second


def test_the_hook_refuses_when_the_server_is_gone(tmp_path: Path, client: Client) -> None:
    """Also: a push past the server, on the machine itself, is refused."""
    repo = GitRepoStore(tmp_path / "repos").create("spaces/1")
    client.commit(a="1")
    refused = client.git("push", str(repo.path), "HEAD:main", ok=False)
    assert "over HTTP only" in refused.remote
    assert repo.head() is None


@pytest.mark.parametrize("stage", ["judge", "record"])
def test_server_killed_while_it_decides(tmp_path: Path, stage: str) -> None:
    """Stopped in the hook nothing is stored; stopped before the record the client is not told ok."""
    root, journal = tmp_path / "repos", tmp_path / "journal"
    client = new_client(tmp_path / "work")
    commit = client.commit(a="1")
    program = f"""
import os, signal, sys
from tests.git import server
def die(*_): os.kill(os.getpid(), signal.{signal.SIGKILL.name})
setattr(server.MemoryBackend, {"'advise'" if stage == "judge" else "'pushed'"}, die)
server.main()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(root), str(journal)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert client.push(f"http://u:{TOKEN}@127.0.0.1:{port}/spaces/{SPACE}", ok=False).status != 0
        assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
    repo = GitRepoStore(root).open("spaces/o-app")
    assert repo.head() == (None if stage == "judge" else commit)
    with process(root, journal) as (_, url):
        client.commit(a="2")
        client.push(url)
