"""A person with a work tree and the git binary of the machine."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def remote(self) -> str:
        """What the server said."""
        return "\n".join(line[7:].strip() for line in self.err.splitlines() if line.startswith("remote:"))


@dataclass(frozen=True)
class Client:
    """A work tree of a person, with the git binary of the machine."""

    path: Path

    def git(self, *args: str, given: bytes | None = None, ok: bool = True, env: dict[str, str] | None = None) -> Result:
        clean = {"PATH": os.environ["PATH"], "HOME": str(self.path.parent), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        clean |= {f"GIT_{who}_{what}": "dev@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", *args], cwd=self.path, env=clean | (env or {}), input=given, capture_output=True, timeout=60
        )
        result = Result(done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "replace"))
        if ok and done.returncode != 0:
            raise AssertionError(f"git {' '.join(args)}: {result.err}")
        return result

    def write(self, path: str, text: str | bytes) -> None:
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())

    def commit(self, message: str = "change", **files: str) -> str:
        """Commit files (a name's `__` stands for `.`), or all that was written."""
        for name, text in files.items():
            self.write(name.replace("__", "."), text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").out.strip()

    def push(self, url: str, *what: str, ok: bool = True) -> Result:
        return self.git("push", url, *(what or ("HEAD:main",)), ok=ok)


def new_client(path: Path) -> Client:
    path.mkdir(parents=True)
    client = Client(path)
    client.git("init", "-q", "-b", "main", ".")
    return client
