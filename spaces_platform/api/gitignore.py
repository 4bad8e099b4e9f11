"""Which paths a .gitignore leaves out, decided by git itself.

Owns one call of `git check-ignore` in an empty work tree. Invariant: the patterns are a user's, so the time is bounded
and nothing of them is executed.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path

from spaces_platform.errors import Invalid

SECONDS = 5.0
_ENVIRONMENT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "HOME": os.devnull, "LC_ALL": "C"}


def ignored(patterns: str, paths: Collection[str]) -> frozenset[str]:
    """The paths that a .gitignore of these patterns at the root leaves out.

    Raises Invalid where git needs longer than SECONDS for them.
    """
    usable = [p for p in paths if p and not p.startswith("/") and "\0" not in p and ".." not in p.split("/")]
    if not patterns.strip() or not usable:
        return frozenset()
    environment = {**_ENVIRONMENT, "PATH": os.environ.get("PATH", os.defpath)}
    with tempfile.TemporaryDirectory(prefix="ignore-") as folder:
        (Path(folder) / ".gitignore").write_text(patterns, encoding="utf-8")
        try:
            subprocess.run(
                ["git", "init", "-q", "--template=", folder],
                env=environment,
                check=True,
                capture_output=True,
                timeout=SECONDS,
            )
            answer = subprocess.run(
                ["git", "-C", folder, "check-ignore", "--no-index", "--stdin", "-z"],
                input="\0".join(usable).encode() + b"\0", env=environment, capture_output=True, timeout=SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Invalid(f".gitignore: its patterns take longer than {SECONDS:g} s; simplify them.") from error
    if answer.returncode not in (0, 1):  # 1: none is ignored
        raise Invalid(f".gitignore could not be read: {answer.stderr.decode('utf-8', 'replace').strip()[:300]}")
    return frozenset(answer.stdout.decode("utf-8", "replace").split("\0")) - {""}
