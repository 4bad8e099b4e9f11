"""Why a build or a start failed: one line with the cause, one with the fix, and the log lines that show it.

Owns: choosing the explanation from facts and log. Does not own: the patterns and words (`diagnosis_rules`), gathering
facts. Invariant: pure and total: always an explanation, in time linear in the log, whatever the log holds.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from packaging.utils import canonicalize_name

from builders import diagnosis_rules as rules

MAX_LINES = 400
"""Last lines of a log that are looked at."""
MAX_LINE = 2000


@dataclass(frozen=True, slots=True)
class Explanation:
    reason: str
    """One of `diagnosis_rules.REASONS`."""
    cause: str
    fix: str
    evidence: tuple[str, ...] = ()


def diagnose_build(
    log_lines: Sequence[str], exit_code: int | None, limit_hit: str | None = None, *, limit: float = 0
) -> Explanation:
    """Why a build command failed.

    `limit_hit` is the limit it was ended for (`seconds`, `memory`, `processes`, `disk`, `free_disk`) and `limit` its
    value; otherwise `exit_code` is the command's.
    """
    lines = _bounded(log_lines)
    if limit_hit:
        reason, cause, fix = rules.LIMITS[limit_hit]
        return Explanation(reason, cause.format(limit=limit, mib=limit / (1 << 20)), fix, tuple(lines[-3:]))
    text = _joined(lines)
    if "No solution found" in text:
        found = _unsatisfiable(text, lines)
        if found:
            return found
    for rule in rules.BUILD_RULES:
        at = next((n for n, line in enumerate(lines) if rule.pattern.search(line)), None)
        if at is not None:
            return _explain_build(rule, lines, at)
    how = f"exit code {exit_code}" if exit_code is None or exit_code >= 0 else _signal(-exit_code)
    return Explanation(
        "build_failed", f"The build failed with {how}.", "The last lines of the log say why.", tuple(lines[-10:])
    )


def diagnose_run(
    *,
    exit_code: int | None = None,
    exited: bool = False,
    out_of_memory: bool = False,
    listening: Iterable[str] = (),
    port: int = 7860,
    timed_out: bool = False,
    log_lines: Sequence[str] = (),
    sdk: str = "",
    seconds: float = 0,
    paths: Iterable[str] = (),
) -> Explanation:
    """Why an app did not start, or stopped.

    `listening` are the `address:port` pairs it listens on, `port` the one it must serve, `seconds` how long it was
    waited for, `paths` the files of the app (tells a missing package from a missing file of its own).
    `exited` is implied by an exit code or by running out of memory.
    """
    lines = _bounded(log_lines)
    if out_of_memory:
        return Explanation(
            "out_of_memory",
            "The app needed more memory than its hardware has, and was ended.",
            "Load less at once or a smaller model, or choose hardware with more memory in the settings.",
            tuple(lines[-3:]),
        )
    if exited or exit_code is not None:
        return _from_log(lines, paths) or _from_exit(exit_code, lines, sdk)
    return _from_ports(list(listening), port, timed_out, seconds, lines, sdk)


# --- builds --------------------------------------------------------------------------------------------------------
def _unsatisfiable(text: str, lines: Sequence[str]) -> Explanation | None:
    """uv's proof that no set of packages fits, in a sentence."""
    shown = tuple(line for line in lines if "No solution found" in line or "ecause" in line)[:6]
    for rule in rules.BUILD_RULES:
        match = rule.pattern.search(text)
        if rule.reason in ("python_version", "package_not_found", "version_not_found") and match:
            if rule.reason == "package_not_found":
                return _unknown_package(match["name"], shown)
            groups = match.groupdict(default="")
            return Explanation(rule.reason, rule.cause.format(**groups), rule.fix.format(**groups), shown)
    return _conflict(text, shown)


def _conflict(text: str, shown: tuple[str, ...]) -> Explanation:
    """Name the two requirements: a package's own need, and the line of the app that contradicts it."""
    needs = re.findall(r"(\S+) depends on (\S+?)[,\s]", text)
    asked = [
        word for word in re.findall(r"(?<!conclude that )you require (\S+?)[,\s]", text) if re.search(r"[=<>~!]", word)
    ]
    for who, what in needs:
        for line in asked:
            if _name(line) == _name(what) and _name(line) != _name(who):
                return Explanation(
                    "resolver_conflict",
                    f"{who} needs {what}, but {line} is asked for.",
                    f"Change or remove `{line}` in requirements.txt, or take another release of {_name(who)}.",
                    shown,
                )
    two = list(dict.fromkeys(asked))[:2]
    if len(two) == 2:
        return Explanation(
            "resolver_conflict",
            f"{two[0]} and {two[1]} cannot be installed together.",
            "Loosen one of the two in requirements.txt: remove its version, or give a range.",
            shown,
        )
    return Explanation(
        "resolver_conflict",
        "The requirements contradict each other.",
        "Loosen the versions in requirements.txt that the log names.",
        shown,
    )


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    return canonicalize_name(match[0]) if match else requirement


def _unknown_package(name: str, shown: tuple[str, ...]) -> Explanation:
    plain = re.sub(r"\[.*", "", name)
    known = next((package for module, package in rules.PACKAGE_OF.items() if module.lower() == plain.lower()), "")
    if known:
        fix = f"Write `{known}` instead of `{plain}` in requirements.txt."
    elif plain.replace("-", "_") in rules.STDLIB:
        fix = f"`{plain}` is part of Python: remove the line from requirements.txt."
    else:
        fix = f"Check the spelling of `{plain}` in requirements.txt; it may differ from the name that is imported."
    return Explanation("package_not_found", f"There is no package named `{plain}`.", fix, shown)


def _explain_build(rule: rules.Rule, lines: Sequence[str], at: int) -> Explanation:
    match = rule.pattern.search(lines[at])
    groups = match.groupdict(default="") if match else {}
    if rule.reason == "package_not_found":
        return _unknown_package(groups["name"], (lines[at],))
    if rule.reason == "bad_requirement":
        groups["file"] = groups["file"] or "requirements.txt"
    if rule.reason == "package_build_failed":
        groups["what"] = groups["what"] or "of this app"
    after = 4 if rule.reason == "bad_requirement" else 2
    return Explanation(
        rule.reason, rule.cause.format(**groups), rule.fix.format(**groups), tuple(lines[at : at + after])
    )


# --- runs ----------------------------------------------------------------------------------------------------------
def _from_log(lines: Sequence[str], paths: Iterable[str]) -> Explanation | None:
    """The last line of the log that a rule knows; failing that, the last exception."""
    for at in range(len(lines) - 1, -1, -1):
        for rule in rules.RUN_RULES:
            match = rule.pattern.search(lines[at].strip())
            if match:
                return _explain_run(rule, match, lines, at, paths)
    for at in range(len(lines) - 1, -1, -1):
        match = rules.GENERIC_EXCEPTION.match(lines[at])
        if match and match["kind"] not in ("KeyboardInterrupt", "SystemExit") and not match["kind"].endswith("Warning"):
            what = f"{match['kind']}: {match['what']}" if match["what"] else match["kind"]
            return Explanation(
                "exception",
                f"The app ended with {what[:300]} ({_where(lines, at)}).",
                "Correct the line that the traceback names; it fails in the same way with `python app.py` elsewhere.",
                _traceback(lines, at),
            )
    return None


def _explain_run(
    rule: rules.Rule, match: re.Match[str], lines: Sequence[str], at: int, paths: Iterable[str]
) -> Explanation:
    groups = {**match.groupdict(default=""), "where": _where(lines, at)}
    cause, fix = rule.cause.format(**groups), rule.fix.format(**groups)
    if rule.reason == "missing_module":
        cause, fix = _missing_module(groups["name"], groups["where"], paths)
    elif rule.reason == "missing_system_library":
        fix = _missing_library(groups["lib"], lines)
    return Explanation(rule.reason, cause, fix, _traceback(lines, at))


def _missing_module(name: str, where: str, paths: Iterable[str]) -> tuple[str, str]:
    top = name.split(".")[0]
    own = [path for path in paths if path.split("/")[-1] == f"{top}.py" or f"/{top}/" in f"/{path}"]
    cause = f"The Python module `{name}` is missing ({where})."
    if own:
        return cause, f"`{own[0]}` is in the repository, but not where Python looks: import it by its folder's name."
    if top in rules.PACKAGE_OF:
        return cause, f"Add `{rules.PACKAGE_OF[top]}` to requirements.txt: it is the package that has `{top}`."
    if top in rules.OWN_NAMES:
        return cause, f"Push the folder `{top}` or the file `{top}.py`; git may be told to ignore it."
    if top in rules.STDLIB:
        return cause, f"`{top}` belongs to Python, but this Python lacks it: choose another python_version."
    return cause, f"Add `{top.replace('_', '-')}` to requirements.txt."


def _missing_library(library: str, lines: Sequence[str]) -> str:
    if any("cv2" in line for line in lines) and library.startswith(("libGL", "libgthread", "libglib")):
        return "Write `opencv-python-headless` instead of `opencv-python` in requirements.txt: it needs no display."
    debian = next((package for prefix, package in rules.DEBIAN_OF.items() if library.startswith(prefix)), "")
    named = f"`{debian}`" if debian else f"the package that has {library}"
    return f"Put {named} into packages.txt (needs a platform with containers), or have it installed on the machine."


def _from_exit(code: int | None, lines: Sequence[str], sdk: str) -> Explanation:
    shown = tuple(lines[-5:])
    if code is None:
        return Explanation("exit_code", "The app ended.", "The last lines of its log may say why.", shown)
    if code == 0:
        fix = rules.NOT_LISTENING_FIX.get(sdk, "The script must start a server and keep running.")
        return Explanation("app_ended", "The app ended by itself, without an error.", fix, shown)
    if code in (-9, 137):
        fix = "Most often that is a lack of memory: load less at once, or choose hardware with more memory."
        return Explanation("killed", "The app was killed (SIGKILL).", fix, shown)
    if code < 0 or 128 < code < 160:
        name = _signal(-code if code < 0 else code - 128)
        fix = "A crash inside a compiled package: try another release of the one you use last."
        return Explanation("killed", f"The app was ended by {name}.", fix, shown)
    if code in (126, 127):
        fix = "Add the package that brings the command to requirements.txt."
        return Explanation("command_not_found", "The start command was not found.", fix, shown)
    fix = "The app itself chose to end: look for sys.exit() and at the last lines of its log."
    return Explanation("exit_code", f"The app ended with exit code {code}.", fix, shown)


def _from_ports(
    listening: list[str], port: int, timed_out: bool, seconds: float, lines: Sequence[str], sdk: str
) -> Explanation:
    shown = tuple(lines[-5:])
    right = [pair for pair in listening if pair.rpartition(":")[2] == str(port)]
    waited = f" within {seconds:.0f} seconds" if timed_out and seconds else ""
    if right and all(_loopback(pair) for pair in right):
        fix = rules.BIND_FIX.get(sdk, "Listen on 0.0.0.0.")
        return Explanation(
            "loopback_only", f"The app listens on {right[0]} only; nobody outside reaches it.", fix, shown
        )
    if right:
        return Explanation(
            "not_answering",
            f"The app listens on port {port}, but did not answer{waited}.",
            "Load models in a thread or on first use; or raise startup_duration_timeout in README.md.",
            shown,
        )
    if listening:
        pairs = ", ".join(sorted(listening)[:4])
        fix = rules.WRONG_PORT_FIX.get(sdk, 'Listen on the port in the variable PORT: int(os.environ["PORT"]).')
        return Explanation("wrong_port", f"The app listens on {pairs}, but must serve port {port}.", fix, shown)
    fix = rules.NOT_LISTENING_FIX.get(sdk, 'Start a server on 0.0.0.0 and the port in int(os.environ["PORT"]).')
    return Explanation(
        "not_listening",
        f"The app runs, but listens on no port{waited}.",
        f"{fix} If it only needs longer, raise startup_duration_timeout in README.md.",
        shown,
    )


def _loopback(pair: str) -> bool:
    address = pair.rpartition(":")[0].strip("[]")
    return address.startswith("127.") or address in ("::1", "localhost", "::ffff:127.0.0.1")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- reading a log -------------------------------------------------------------------------------------------------
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)')
_NOT_OURS = re.compile(r"site-packages|/lib/python3|<frozen|<string>")


def _bounded(lines: Sequence[str]) -> list[str]:
    return [_ANSI.sub("", line[:MAX_LINE]).rstrip() for line in lines[-MAX_LINES:]]


def _joined(lines: Sequence[str]) -> str:
    """The log as one sentence: uv breaks its explanations over several lines."""
    return re.sub(r"[\s│╰─▶]+", " ", " ".join(lines)) + " "


def _where(lines: Sequence[str], at: int) -> str:
    """The last place of the app's own files that is named before a line: `app.py, line 3`."""
    for line in reversed(lines[: at + 1]):
        match = _FRAME.match(line)
        if match and not _NOT_OURS.search(match["file"]):
            file = match["file"].rpartition("/app/")[2]
            return f"{file.rsplit('/', 1)[-1] if file.startswith('/') else file}, line {match['line']}"
        if line.startswith("Traceback ("):
            break
    return "see the log"


def _traceback(lines: Sequence[str], at: int) -> tuple[str, ...]:
    """The lines that show it: the app's own frame with its code, and the error."""
    shown = {at}
    for n in range(at, max(at - 60, -1), -1):
        match = _FRAME.match(lines[n])
        if match and not _NOT_OURS.search(match["file"]):
            shown |= {n, min(n + 1, at)}
            break
    return tuple(lines[n] for n in sorted(shown))


def as_mapping(explanation: Explanation) -> Mapping[str, object]:
    """For JSON."""
    return {
        "reason": explanation.reason,
        "cause": explanation.cause,
        "fix": explanation.fix,
        "evidence": list(explanation.evidence),
    }
