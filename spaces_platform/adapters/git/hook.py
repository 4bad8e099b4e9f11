"""The pre-receive hook and the line it holds to this process.

It owns the hook's text and the conversation with it over two inherited pipes. Invariant: the hook accepts only on the
word `accept` from the process that started git; if that process is gone, or never was, the push is refused.

A POSIX shell script that asks the server costs 2 ms; an interpreter with our rules in it would cost 100.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from spaces_platform.adapters.git.push_check import Verdict
from spaces_platform.adapters.git.push_rules import Problem
from spaces_platform.errors import PlatformError
from spaces_platform.ports import RefUpdate

log = logging.getLogger(__name__)

HOOK = r"""#!/bin/sh
# Written by the platform; the verdict on a push comes from the server that started git.
[ -n "$SPACES_HOOK_ASK" ] && [ -n "$SPACES_HOOK_ANSWER" ] || {
  echo 'Push refused: this repository takes pushes over HTTP only.' >&2
  exit 1
}
exec 8>"/dev/fd/$SPACES_HOOK_ASK" 9<"/dev/fd/$SPACES_HOOK_ANSWER" || exit 1
printf 'quarantine %s\n' "$GIT_QUARANTINE_PATH" >&8 || exit 1
while read -r old new ref; do
  printf 'update %s %s %s\n' "$old" "$new" "$ref" >&8 || exit 1
done
printf 'end\n' >&8 || exit 1
while IFS= read -r line <&9; do
  case $line in
    accept) exit 0 ;;
    refuse) exit 1 ;;
    'say '*) printf '%s\n' "${line#say }" >&2 ;;
  esac
done
echo 'The platform stopped while it checked this push; nothing was stored. Push again.' >&2
exit 1
"""

Judge = Callable[[Path | None, Sequence[RefUpdate]], Verdict]


def install(folder: Path) -> None:
    """Write the hook into `folder`, which nobody else may write to. Safe to repeat, also at once."""
    folder.mkdir(parents=True, exist_ok=True)
    hook = folder / "pre-receive"
    if not hook.exists() or hook.read_text() != HOOK:
        fresh = folder / f".pre-receive.{os.getpid()}.{threading.get_ident()}"
        folder.chmod(0o755)
        fresh.write_text(HOOK)
        fresh.chmod(0o555)
        fresh.replace(hook)
    folder.chmod(0o555)


class HookLine:
    """One conversation with the hook of one push. Used as a context around the git process."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.verdict: Verdict | None = None
        """What was decided; None where the hook never asked."""
        self._ask, ask_write = os.pipe()
        answer_read, self._answer = os.pipe()
        self.child_fds = (ask_write, answer_read)
        """To be inherited by git (`pass_fds`)."""
        self.env: Mapping[str, str] = {"SPACES_HOOK_ASK": str(ask_write), "SPACES_HOOK_ANSWER": str(answer_read)}
        self._open = [ask_write, answer_read]
        self._lock, self._over = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="push-check", daemon=True)

    def __enter__(self) -> Self:
        return self

    def started(self) -> None:
        """git runs and has its ends of the pipes: close ours, so that each side sees when the other is gone."""
        self._close_child_ends()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """Once git has ended the thread reads the end of the pipe, if it has not answered before."""
        self._close_child_ends()
        if self._thread.ident is None:
            os.close(self._ask)
            os.close(self._answer)

    def abort(self) -> None:
        """Refuse now, without waiting for the decision, unless it has been made."""
        with self._lock:
            if self.verdict is None and not self._over and self._thread.ident is not None:
                self._over = True
                with suppress(BrokenPipeError):  # the hook is gone, or has never been
                    os.write(self._answer, b"refuse\n")

    def _close_child_ends(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def _run(self) -> None:
        with (
            open(self._ask, encoding="utf-8", errors="surrogateescape") as ask,
            open(self._answer, "w", encoding="utf-8", errors="replace") as answer,
        ):
            try:
                self._converse(ask, answer)
            except BrokenPipeError:
                log.info("a push was cut while it was checked")
            finally:
                with self._lock:
                    self._over = True

    def _converse(self, ask: Iterable[str], answer: IO[str]) -> None:
        asked = _question(ask)
        if asked is None:
            return
        verdict = self._decide(*asked)
        with self._lock:
            if self._over:
                return
            self.verdict = verdict
        answer.writelines(f"say {line}\n" for line in verdict.lines())
        answer.write("accept\n" if verdict.accepted else "refuse\n")
        answer.flush()

    def _decide(self, quarantine: Path | None, updates: Sequence[RefUpdate]) -> Verdict:
        try:
            return self._judge(quarantine, updates)
        except PlatformError as error:
            return Verdict((Problem(error.code, "", error.message, "Change the push and try again."),))
        except Exception:
            log.exception("checking a push failed")
            text = "The platform could not check this push."
            return Verdict((Problem("internal", "", text, "Try again; if it stays, tell the platform's operator."),))


def _question(ask: Iterable[str]) -> tuple[Path | None, list[RefUpdate]] | None:
    """What the hook asks, or None where it never did (git refused the push itself, or was ended)."""
    quarantine: Path | None = None
    updates: list[RefUpdate] = []
    for line in ask:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "end":
            return quarantine, updates
        if word == "quarantine":
            quarantine = Path(rest) if rest else None
        elif word == "update":
            old, new, ref = rest.split(" ", 2)
            updates.append(RefUpdate(ref, old, new))
    return None
