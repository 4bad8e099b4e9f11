"""Pushes a folder with the real git.

Owns: deciding what is pushed (the folder's own HEAD, or a snapshot of its files), making a snapshot, and running
`git push` with what the platform answers shown. Does not own: what the platform does with it. Invariant: the folder's
own repository is only read (a snapshot lives in a temporary one), and the token is handed to git in its environment
alone: never in a URL, an argument or a file.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from spaces_platform.cli.console import Failure

BRANCH = "refs/heads/main"
LOCAL_SECONDS = 120.0
"""Longest a git command on this machine may take."""
_ALWAYS_LEFT_OUT = (".venv/", "venv/", "node_modules/", "__pycache__/", "*.pyc", ".DS_Store", ".env", ".spaces/")
"""What a snapshot leaves out beside what .gitignore says: made files, and files that hold secrets."""
_REDACTED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to push, as whom."""

    url: str
    user: str
    token: str | None


@dataclass(frozen=True, slots=True)
class Pushed:
    commit: str
    changed: bool
    """False: the platform had this commit already."""


def git_environment(environ: Mapping[str, str], target: Target | None = None) -> dict[str, str]:
    """The environment for git: no prompts, nothing of another repository, and the token for `target`'s address.

    Pure. GIT_CONFIG_COUNT needs git 2.31 (git-config(1)).
    """
    env = {key: value for key, value in environ.items() if key not in _REDACTED and not key.startswith("GIT_CONFIG_")}
    env |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_ASKPASS": "true"}
    if target is None:
        return env
    origin = "{0.scheme}://{0.netloc}/".format(urlsplit(target.url))
    # An empty credential.helper forgets the user's own: what we send must not be kept by any of them.
    settings = [("credential.helper", ""), ("push.autoSetupRemote", "false")]
    if target.token:
        basic = base64.b64encode(f"{target.user}:{target.token}".encode()).decode()
        settings.append((f"http.{origin}.extraHeader", f"Authorization: Basic {basic}"))
    if urlsplit(target.url).hostname in ("localhost", "127.0.0.1", "::1"):
        settings.append((f"http.{origin}.proxy", ""))
    for n, (key, value) in enumerate(settings):
        env |= {f"GIT_CONFIG_KEY_{n}": key, f"GIT_CONFIG_VALUE_{n}": value}
    return env | {"GIT_CONFIG_COUNT": str(len(settings))}


def push_folder(
    folder: Path,
    target: Target,
    *,
    message: str,
    force: bool,
    remote_line: Callable[[str], None],
    note: Callable[[str], None],
) -> Pushed:
    """Push the folder to main. Raises Failure with what git or the platform said."""
    if shutil.which("git") is None:
        raise Failure("git is not installed.", "Install it (`apt install git`) and try again.")
    if _is_clean_work_tree(folder):
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return _push(folder, target, commit, force=force, remote_line=remote_line)
    inside = _toplevel(folder)
    if inside == folder.resolve():
        note("Uncommitted changes are pushed too, in a commit made for this push; your own branch stays as it is.")
    with tempfile.TemporaryDirectory(prefix="spaces-push-") as temporary:
        head = remote_head(Path(temporary), target)
        git_dir = Path(temporary) / "repo.git"
        made = snapshot(folder, git_dir, target, head, message)
        if made is None:
            return Pushed(head or "", changed=False)
        return _push(git_dir, target, made, force=False, remote_line=remote_line)


def snapshot(folder: Path, git_dir: Path, target: Target, head: str | None, message: str) -> str | None:
    """A commit of the folder's files on top of the platform's head, in a new repository; None where nothing changed.

    Standing on the platform's head, the push never throws away what somebody else put there.
    """
    _git(folder, "init", "--quiet", "--bare", str(git_dir))
    (git_dir / "info").mkdir(exist_ok=True)
    (git_dir / "info" / "exclude").write_text("\n".join((*_ALWAYS_LEFT_OUT, "")))
    base = ("--git-dir", str(git_dir), "--work-tree", str(folder.resolve()))
    options = ("-c", "core.bare=false", "-c", "core.autocrlf=false", "-c", "advice.addEmbeddedRepo=false")
    if _toplevel(folder) is not None:
        # The ignore rules of the repository around this folder hold as well, and only git knows them all.
        names = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        kept = "\0".join(
            n
            for n in names.split("\0")
            if n and not _is_left_out(n) and (folder / n).is_symlink() | (folder / n).is_file()
        )
        _git(folder, *base, *options, "update-index", "--add", "-z", "--stdin", given=kept + "\0" if kept else "")
    else:
        _git(folder, *base, *options, "add", "--all", ".")
    tree = _git(folder, *base, "write-tree").strip()
    if tree == EMPTY_TREE:
        raise Failure(f"There is nothing to push in {folder}: it is empty, or everything in it is ignored.")
    parents: list[str] = []
    if head is not None:
        _git(folder, *base, "fetch", "--quiet", "--depth=1", target.url, BRANCH, target=target)
        if _git(folder, *base, "rev-parse", f"{head}^{{tree}}").strip() == tree:
            return None
        parents = ["-p", head]
    who = _author(folder, target.user)
    return _git(folder, *base, "commit-tree", tree, *parents, "-m", message, extra=who).strip()


EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""git hash-object -t tree /dev/null"""


def remote_head(folder: Path, target: Target) -> str | None:
    """The platform's main, or None for a Space without one."""
    listed = _git(folder, "ls-remote", target.url, BRANCH, target=target)
    return listed.split()[0] if listed.strip() else None


def refusal(lines: Sequence[str], code: int) -> Failure:
    """The reason of a push that failed, from git's own output. Pure."""
    told = [line.removeprefix("remote:").strip() for line in lines if line.startswith("remote:")]
    told = [line for line in told if line]
    text = "\n".join(lines)
    if re.search(r"\(non-fast-forward\)|\(fetch first\)|\(stale info\)", text):
        return Failure(
            "The platform has commits that this folder has not: the push was refused.",
            "Take them over with `git pull`, or overwrite them with --force.",
            remote=told,
        )
    rejected = re.search(r"! \[(?:remote )?rejected\].*\((.*)\)", text)
    fatal = re.search(r"^(?:fatal|error): (.*)$", text, re.MULTILINE)
    reason = rejected[1] if rejected else fatal[1] if fatal else f"git ended with exit code {code}"
    if told:
        return Failure(f"The push was refused: {told[0]}", " ".join(told[1:]), remote=told, git=reason)
    return Failure(f"The push failed: {reason}.", "", remote=told, git=reason)


def _push(repo: Path, target: Target, commit: str, *, force: bool, remote_line: Callable[[str], None]) -> Pushed:
    argv = ["git", "-C", str(repo), "push", "--porcelain", target.url, f"{commit}:{BRANCH}"]
    if force:
        argv.insert(4, "--force")
    lines: list[str] = []
    process = subprocess.Popen(
        argv, env=git_environment(os.environ, target), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    try:
        for raw in process.stdout or ():
            line = raw.rstrip().rpartition("\r")[2].rstrip()
            lines.append(line)
            if told := line.removeprefix("remote:").strip() if line.startswith("remote:") else "":
                remote_line(told)
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code:
        raise refusal(lines, code)
    return Pushed(commit, changed=not any(line.startswith("=") for line in lines))


def _is_clean_work_tree(folder: Path) -> bool:
    """Whether the folder is the root of a work tree whose HEAD is exactly its files."""
    if _toplevel(folder) != folder.resolve():
        return False
    if _run(folder, "rev-parse", "--verify", "--quiet", "HEAD").returncode:
        return False
    return not _git(folder, "status", "--porcelain").strip()


def _toplevel(folder: Path) -> Path | None:
    found = _run(folder, "rev-parse", "--show-toplevel")
    return Path(found.stdout.strip()).resolve() if found.returncode == 0 and found.stdout.strip() else None


def _author(folder: Path, user: str) -> dict[str, str]:
    """Who the snapshot is by: git's own settings, or the platform's user where there are none."""
    name = _run(folder, "config", "user.name").stdout.strip() or user
    email = _run(folder, "config", "user.email").stdout.strip() or f"{user}@localhost"
    return {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", name), ("EMAIL", email))
    }


def _is_left_out(name: str) -> bool:
    parts = name.split("/")
    folders = {pattern.rstrip("/") for pattern in _ALWAYS_LEFT_OUT if pattern.endswith("/")}
    return bool(folders & set(parts[:-1])) or parts[-1] in (".DS_Store", ".env") or name.endswith(".pyc")


def git_output(folder: Path, *arguments: str) -> str:
    """What a git command says of the folder; nothing where it fails, as outside a repository."""
    done = _run(folder, *arguments)
    return done.stdout.strip() if done.returncode == 0 else ""


def _run(
    folder: Path,
    *arguments: str,
    given: str | None = None,
    target: Target | None = None,
    extra: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            input=given, capture_output=True, text=True, errors="surrogateescape", timeout=LOCAL_SECONDS, check=False,
            env={**git_environment(os.environ, target), **(extra or {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise Failure(f"`git {arguments[0]}` took longer than {LOCAL_SECONDS:.0f} s in {folder}.") from exc


def _git(
    folder: Path,
    *arguments: str,
    given: str | None = None,
    target: Target | None = None,
    extra: Mapping[str, str] | None = None,
) -> str:
    done = _run(folder, *arguments, given=given, target=target, extra=extra)
    if done.returncode:
        raise refusal(done.stderr.splitlines(), done.returncode)
    return done.stdout
