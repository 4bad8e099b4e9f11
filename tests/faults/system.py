"""The real platform on a temporary data directory, with every request and answer kept, and its invariants checked.

Owns: starting and stopping the platform by its command line, talking to it as users do (git, HTTP), ending its
processes at a chosen moment, and the checks (I1 to I5, I12: what must hold after every fault). Does not own: what a
test does to it.
Nothing here reaches into the platform but `check`, which reads its database, repositories, logs and process table.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import apps
from tests.services import databases

ROOT = Path(__file__).resolve().parents[2]
SHIM_PATH = str(ROOT / "spaces_platform" / "adapters" / "process")
OPEN = ("STARTING", "READY", "STOPPING")
TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
QUIET_SECONDS = 40.0
"""How long after the last fault everything may take to be at rest."""
STRETCH = float(os.environ.get("TEST_STRETCH", "4"))
"""Every time that is waited for or measured here may be so often what it is on an idle machine: whether a test passes
must not depend on who else uses this one. `make soak` measures the times themselves, with 1."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float, what: str, every: float = 0.03) -> Any:
    """The first true value of `condition`; fails at the deadline (stretched), saying what was waited for."""
    seconds *= STRETCH
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(every)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Push:
    name: str
    commit: str
    acked: bool
    said: str


@dataclass
class Journal:
    """Every request sent and every answer got, in order, in a file that outlives the test."""

    path: Path
    pushes: list[Push] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, kind: str, **facts: Any) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(json.dumps({"at": time.time(), "kind": kind, **facts}) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [row for row in map(json.loads, self.path.read_text().splitlines()) if row["kind"] == kind]


class System:
    """One platform. `up()` first; `down()` at the end, whatever happened."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder, self.data, self.port = folder, folder / "d", free_port()
        self.data.mkdir(parents=True, exist_ok=True, mode=0o711)
        settings = {"database": databases.url_of(self.data), **settings}
        self.settings = {f"SPACES_{k.upper()}": str(v) for k, v in settings.items()}
        self.database = str(settings["database"])
        self.journal = Journal(folder / "journal.jsonl")
        self.excused: list[str] = []
        """Texts of log records that the test itself brought about."""
        self.up_seconds = 0.0
        self.foreign = set(self.processes("shim.main", SHIM_PATH))
        """Shims that were there before: of another platform on this machine, or of another test of this run."""
        (folder / "work").mkdir(exist_ok=True)

    # --- the platform's life ------------------------------------------------------------------------------------------
    def environment(self) -> dict[str, str]:
        # Without bytecode every restart would compile all of it again, and the time to recovery would show that.
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SPACES_") and k != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, **apps.ENVIRONMENT, **self.settings, "PYTHONPATH": str(ROOT)}

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "spaces_platform", *words, "--data", str(self.data)],
            cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def up(self) -> System:
        began = time.monotonic()
        done = self.command("up", "--detach", "--port", str(self.port))
        assert done.returncode == 0, done.stdout + done.stderr
        self.up_seconds = time.monotonic() - began
        return self

    def down(self) -> None:
        self.resume_all()
        self.command("down")

    @property
    def token(self) -> str:
        return (self.data / "admin.token").read_text().strip()

    def pid(self, role: str) -> int:
        name = "supervisor.json" if role == "supervisor" else f"{role}.pid"
        return int(json.loads((self.data / "run" / name).read_text())["pid"])

    def kill(self, role: str) -> int:
        """SIGKILL. Returns the pid that was."""
        pid = self.pid(role)
        self.journal.write("kill", role=role, pid=pid)
        os.kill(pid, signal.SIGKILL)
        return pid

    def signal(self, role: str, number: signal.Signals) -> None:
        self.journal.write("signal", role=role, number=int(number))
        os.kill(self.pid(role), number)

    def resume_all(self) -> None:
        for role in ("control", "gateway", "supervisor"):
            try:
                os.kill(self.pid(role), signal.SIGCONT)
            except (OSError, ValueError):
                continue

    def is_ready(self) -> bool:
        try:
            return self.request("GET", "/readyz", timeout=2).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def wait_ready(self, seconds: float) -> float:
        began = time.monotonic()
        until(self.is_ready, seconds, "the platform answers /readyz")
        return time.monotonic() - began

    # --- HTTP ---------------------------------------------------------------------------------------------------------
    def request(
        self, method: str, path: str, *, host: str = "localhost", headers: Mapping[str, str] | None = None,
        body: bytes | None = None, timeout: float = 30.0,
    ) -> Answer:  # fmt: skip
        """One request on a connection of its own. Raises OSError, HTTPException."""
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Host": f"{host}:{self.port}", **(headers or {})})
            answer = connection.getresponse()
            found = Answer(answer.status, dict(answer.getheaders()), answer.read(), time.monotonic() - began)
        except (OSError, http.client.HTTPException) as exc:
            self.journal.write("request", method=method, host=host, path=path, error=repr(exc))
            raise
        finally:
            connection.close()
        self.journal.write("request", method=method, host=host, path=path, status=found.status, seconds=found.seconds)
        return found

    def api(self, method: str, path: str, value: object = None, *, expect: int | None = 200) -> Any:
        """A JSON call as the admin. `expect` None: any status; the answer is then (status, body)."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        body = None if value is None else json.dumps(value).encode()
        answer = self.request(method, path, headers=headers, body=body)
        found = json.loads(answer.body) if answer.body[:1] in (b"{", b"[") else answer.text
        if expect is None:
            return answer.status, found
        assert answer.status == expect, f"{method} {path}: {answer.status} {answer.text[:500]}"
        return found

    def get(self, name: str, path: str = "/", timeout: float = 30.0, **headers: str) -> Answer:
        """A visitor's request to an app."""
        return self.request("GET", path, host=f"admin-{name}.localhost", headers=headers, timeout=timeout)

    # --- Spaces -------------------------------------------------------------------------------------------------------
    def create(
        self, name: str, variables: Mapping[str, str] | None = None, secrets: Mapping[str, str] | None = None
    ) -> None:
        self.api(
            "POST", "/api/repos/create",
            {"type": "space", "name": name, "sdk": "static", "init": False,
             "variables": [{"key": k, "value": v} for k, v in (variables or {}).items()],
             "secrets": [{"key": k, "value": v} for k, v in (secrets or {}).items()]},
        )  # fmt: skip

    def commit(self, name: str, files: Mapping[str, str | bytes], *, clean: bool = True) -> str:
        """A commit in the owner's own clone; `clean`: of these files only."""
        work = self.folder / "work" / name
        if not work.exists():
            work.mkdir()
            self.git(work, "init", "-q", "-b", "main")
            self.git(
                work, "remote", "add", "origin", f"http://x:{self.token}@127.0.0.1:{self.port}/spaces/admin/{name}"
            )
        if clean:
            self.git(work, "rm", "-rq", "--ignore-unmatch", ".")
        for path, content in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git(work, "add", "-A", "-f")
        self.git(work, "commit", "-q", "--allow-empty", "-m", "change")
        return self.git(work, "rev-parse", "HEAD").stdout.strip()

    def push_commit(self, name: str, commit: str, *, check: bool = False) -> Push:
        work = self.folder / "work" / name
        done = self.git(work, "push", "origin", "main", ok=False)
        push = Push(name, commit, done.returncode == 0, done.stdout + done.stderr)
        self.journal.pushes.append(push)
        self.journal.write("push", name=name, commit=commit, acked=push.acked, said=push.said)
        assert push.acked or not check, push.said
        return push

    def push(self, name: str, files: Mapping[str, str | bytes]) -> Push:
        """Commit and push; fails where the push is refused."""
        return self.push_commit(name, self.commit(name, files), check=True)

    def git(self, work: Path, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
        }
        env |= {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "t"), ("EMAIL", "t@t"))
        }
        done = subprocess.run(["git", *words], cwd=work, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or not ok, f"git {words}: {done.stderr}"
        return done

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api("GET", f"/api/platform/spaces/admin/{name}")
        return found

    def wait_stage(self, name: str, stage: str, seconds: float = 30.0) -> dict[str, Any]:
        return self._wait_status(name, seconds, f"is {stage}", lambda status: status["stage"] == stage)

    def wait_up_to_date(self, name: str, seconds: float = 30.0) -> dict[str, Any]:
        """Until it serves its head. A stage that was written before a kill may be of an older head, until the first
        pass."""
        return self._wait_status(
            name, seconds, "serves its head", lambda s: s["stage"] == "RUNNING" and s["servingCommit"] == s["head"]
        )

    def _wait_status(
        self, name: str, seconds: float, what: str, wanted: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        last: dict[str, Any] = {}

        def reached() -> bool:
            last.update(self._status_or_nothing(name))
            return bool(last) and wanted(last)

        try:
            until(reached, seconds, f"{name} {what}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it is {json.dumps(last)[:1500]}") from None
        return last

    def _status_or_nothing(self, name: str) -> dict[str, Any]:
        try:
            status, found = self.api("GET", f"/api/platform/spaces/admin/{name}", expect=None)
        except (OSError, http.client.HTTPException):
            return {}
        return found if status == 200 else {}

    def wait_serving(self, name: str, text: str, seconds: float = 30.0) -> None:
        """Until a visitor reads `text`."""
        last: list[object] = [None]

        def serves() -> bool:
            try:
                answer = self.get(name, timeout=10)
            except (OSError, http.client.HTTPException) as exc:
                last[0] = exc
                return False
            last[0] = (answer.status, answer.text[:200])
            return answer.status == 200 and text in answer.text

        try:
            until(serves, seconds, f"{name} serves {text!r}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; last {last[0]}; {json.dumps(self._status_or_nothing(name))[:1500]}") from None

    # --- looking inside -----------------------------------------------------------------------------------------------
    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        return databases.rows(self.database, query, *values)

    def space_id(self, name: str) -> int:
        return int(self.rows("SELECT id FROM space WHERE name = ? ORDER BY id DESC", name)[0]["id"])

    def shim(self, deployment_id: int) -> int | None:
        try:
            return int(
                json.loads((self.data / "apps" / "deployments" / str(deployment_id) / "shim.json").read_text())["pid"]
            )
        except FileNotFoundError:
            return None

    def processes(self, *words: str) -> list[int]:
        """Processes of this machine whose command line holds all of the words."""
        return [pid for pid, argv in _command_lines() if all(word in argv for word in words)]

    def app_processes(self) -> dict[int, list[int]]:
        """Deployment id -> its processes, by the mark in their environment."""
        digest = hashlib.sha256(str((self.data / "apps").resolve()).encode()).hexdigest()[:8]
        mark = f"SPACES_RUN=spaces-{digest}-".encode()
        found: dict[int, list[int]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environ = (folder / "environ").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            for entry in environ.split(b"\0"):
                if entry.startswith(mark) and state != "Z":
                    found.setdefault(int(entry[len(mark) :]), []).append(int(folder.name))
        return found

    # --- the invariants -----------------------------------------------------------------------------------------------
    def check(self) -> None:
        """All invariants, once everything is at rest."""
        self.wait_ready(QUIET_SECONDS)
        until(self._at_rest, QUIET_SECONDS, "every build and deployment is at rest")
        self.check_database()
        self.check_pushes()
        self.check_builds()
        self.check_deployments()
        until(lambda: not self._strays(), 20.0, f"no process without a row: {self._strays()}", every=0.2)
        self.check_logs()

    def _at_rest(self) -> bool:
        builds = self.rows("SELECT id FROM build WHERE status NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED')")
        moving = self.rows(
            "SELECT id FROM deployment WHERE status IN ('STARTING', 'STOPPING') OR (status = 'READY' AND NOT live)"
        )
        dying = self.rows("SELECT id FROM space WHERE desired = 'DELETED' AND purged_at IS NULL")
        return not builds and not moving and not dying

    def check_database(self) -> None:
        databases.check(self.database)

    def check_pushes(self) -> None:
        """I1: what was acknowledged is there, whole, and reachable; the row agrees with the ref."""
        for space in self.rows("SELECT id, name, head FROM space WHERE purged_at IS NULL AND desired != 'DELETED'"):
            repo = self.data / "repos" / "spaces" / f"{space['id']}.git"
            done = subprocess.run(
                ["git", "--git-dir", repo, "fsck", "--strict", "--full"], capture_output=True, text=True
            )
            assert done.returncode == 0, f"{space['name']}: {done.stderr}"
            head = subprocess.run(
                ["git", "--git-dir", repo, "rev-parse", "-q", "--verify", "main"], capture_output=True, text=True
            )
            found = head.stdout.strip() or None
            assert found == space["head"], f"{space['name']}: main is {found}, the row says {space['head']}"
            for push in self.journal.pushes:
                if push.acked and push.name == space["name"]:
                    args = ["git", "--git-dir", repo, "merge-base", "--is-ancestor", push.commit, "main"]
                    done = subprocess.run(args, capture_output=True, text=True)
                    assert done.returncode == 0, f"{push.name}: acknowledged {push.commit} is lost: {done.stderr}"

    def check_builds(self) -> None:
        """I3: each accepted build reached exactly one terminal status."""
        ended: dict[int, list[str]] = {}
        for event in self.rows(
            "SELECT kind, data FROM event WHERE kind IN ('build.succeeded', 'build.failed', 'build.cancelled')"
        ):
            ended.setdefault(json.loads(event["data"])["build"], []).append(event["kind"])
        for build in self.rows("SELECT id, status FROM build"):
            assert build["status"] in TERMINAL, build
            assert ended.get(build["id"]) == [f"build.{build['status'].lower()}"], (build, ended.get(build["id"]))
        left = [p.name for p in (self.data / "artifacts" / "temp").glob("*")]
        assert not left, f"builds left {left}"

    def check_deployments(self) -> None:
        """I4: at most one live deployment of a Space, of a green build of that Space; the route points to it."""
        # In one statement, which sees one moment: a crashed app may just be started again.
        query = (
            "SELECT space.id, name, routed, deployment.id AS serves, artifact FROM space LEFT JOIN deployment"
            " ON space_id = space.id AND live WHERE purged_at IS NULL"
        )
        found = self.rows(query)
        assert len({row["id"] for row in found}) == len(found), found
        for row in found:
            assert row["routed"] == row["serves"], row
            if row["serves"] is not None:
                green = "SELECT id FROM build WHERE space_id = ? AND artifact = ? AND status = 'SUCCEEDED'"
                assert self.rows(green, row["id"], row["artifact"]), f"none of its green builds made it: {row}"

    def _strays(self) -> list[str]:
        """I5: processes of ours that no row knows, and rows whose process is missing."""
        rows = {
            r["id"]: r["status"]
            for r in self.rows("SELECT id, status FROM deployment WHERE status IN ('STARTING','READY','STOPPING')")
        }
        running = self.app_processes()
        found = [f"deployment {n} has no open row but processes {p}" for n, p in running.items() if n not in rows]
        found += [f"deployment {n} is {s} and has no process" for n, s in rows.items() if n not in running]
        known = {self.shim(n) for n in rows}
        control = self.pid("control")
        for pid in self.processes("shim.main", SHIM_PATH):
            if (
                pid not in known | self.foreign
                and _parent(pid) not in (control, None)
                and not self._is_others_shim(pid)
            ):
                found.append(f"shim {pid} belongs to nothing")
        for words in (("receive-pack", str(self.data)), (str(self.data / "artifacts" / "temp"),)):
            found += [f"{pid} still works on {words}" for pid in self.processes(*words)]
        return found

    def _is_others_shim(self, pid: int) -> bool:
        """A platform of another test: its shim is on record there, or its parent is a living control plane."""
        for record in self.folder.parent.glob("*/d/apps/deployments/*/shim.json"):
            try:
                if json.loads(record.read_text())["pid"] == pid:
                    return True
            except (OSError, ValueError):
                continue
        parent = _parent(pid)
        return parent is not None and "control" in _command_line(parent)

    def check_logs(self) -> None:
        """I12: no traceback of ours, no 500."""
        for path in (self.data / "logs").glob("*.log"):
            for line in path.read_text(errors="replace").splitlines():
                bad = '"traceback"' in line or "Traceback (most recent" in line
                assert not bad or any(text in line for text in self.excused), f"{path.name}: {line[:3000]}"
        failed = [r for r in self.journal.of("request") if r.get("status") == 500]
        assert not failed, failed[:5]


def _command_lines() -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").glob("[0-9]*"):
        line = _command_line(int(folder.name))
        if line:
            yield int(folder.name), line


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[System]:
    """A platform for a test, stopped afterwards. The journal and the logs stay in `folder`."""
    system = System(folder, **settings)
    try:
        yield system.up()
    finally:
        system.down()
        for pids in system.app_processes().values():
            _end(pids)


def _end(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
