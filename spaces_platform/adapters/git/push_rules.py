"""The rules a push must keep: pure decisions over names, trees, links and text.

It owns what is refused, why, and what to do about it; it runs no git (`push_check` walks the objects). Invariant: the
facts of a tree depend on its content alone, so they can be kept for ever; their cost is linear in distinct trees and
their size is bounded, whatever the tree multiplies out to.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

TREE, LINK, SUBMODULE = "40000", "120000", "160000"
_MODES = {"100644", "100664", "100755", TREE, LINK}
_KEPT = 10
_LINKS_KEPT = 1000
_LINK_HOPS = 40
ZERO = "0" * 40

# Code points that HFS+ drops from names (git's utf8.c, next_hfs_char): `.g<ZWNJ>it` is `.git` there.
_HFS_IGNORED = dict.fromkeys([*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF])
_NO_LINKS = {".gitmodules", ".gitattributes", ".gitignore", ".mailmap"}
_REF_BAD = re.compile(r"[^!-~]|[~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|\.$|/$|^[./-]|/-")
_PLAIN = re.compile(rb"(?!\.{1,2}$)[ -.0-\[\]-~]{1,200}")
_HEX_NAME = re.compile(r"^[0-9a-f]{40}$")
TOKEN = re.compile(rb"(?<![A-Za-z0-9_])hf_([A-Za-z0-9]{30,})")


@dataclass(frozen=True, slots=True)
class PushLimits:
    """What a repository and one push may hold. Bytes unless it says otherwise."""

    files: int = 50_000
    tree_bytes: int = 2 << 30
    file_bytes: int = 10 << 20
    pack_bytes: int = 512 << 20
    repo_bytes: int = 2 << 30
    refs: int = 200
    ref_bytes: int = 200
    component_bytes: int = 255
    path_bytes: int = 4096
    depth: int = 64
    trees: int = 100_000
    """Distinct directories looked at in one push."""
    scan_bytes: int = 1 << 20
    """Text files up to this size are searched for tokens."""
    scan_total: int = 64 << 20
    """Bytes searched for tokens in one push."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason to refuse a push."""

    code: str
    path: str
    """The path or ref it is about; empty where it is about the whole push."""
    text: str
    fix: str


class TreeItem(NamedTuple):
    mode: str
    name: bytes
    oid: str


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """What the rules need to know of a tree and everything below it. Paths are relative to it."""

    files: int = 0
    bytes: int = 0
    depth: int = 1
    longest: int = 0
    """Bytes of the longest path."""
    largest: tuple[tuple[int, str], ...] = ()
    oversize: int = 0
    links: tuple[tuple[str, str], ...] = ()
    """(path, blob id) of symbolic links."""
    link_count: int = 0
    problems: tuple[Problem, ...] = ()


def show(raw: bytes) -> str:
    """A path for people: what is not printable is escaped, so that it can neither move a cursor nor split a line."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def ref_problem(ref: str, limits: PushLimits) -> Problem | None:
    """Why a ref name is refused. Stricter than `git check-ref-format`."""

    def refuse(text: str, fix: str) -> Problem:
        return Problem("ref", ref, f"{show(ref.encode('utf-8', 'replace'))}: {text}", fix)

    name = next((ref.removeprefix(p) for p in ("refs/heads/", "refs/tags/") if ref.startswith(p)), None)
    if name is None:
        return refuse(
            "only branches (refs/heads/…) and tags (refs/tags/…) can be pushed.", "Push to a branch or a tag."
        )
    if len(ref.encode("utf-8", "replace")) > limits.ref_bytes:
        return refuse(f"the name is longer than {limits.ref_bytes} bytes.", "Use a shorter name.")
    if not name or _REF_BAD.search(name) or name in {"@", "HEAD"}:
        return refuse(
            "the name is not allowed.",
            "Use printable ASCII without spaces, ~ ^ : ? * [ \\ or '..', no part starting with '-' or '.'.",
        )
    if _HEX_NAME.match(name):
        return refuse("the name looks like a commit id.", "Use another name.")
    return None


def name_problem(name: bytes, limits: PushLimits) -> tuple[str, str, str] | None:
    """(code, what is wrong, fix) of one path component, or None."""
    if _PLAIN.fullmatch(name) and len(name) <= limits.component_bytes and b"git" not in name.lower():  # most names
        return None
    rename = "Rename it (git mv) and commit again."
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return "encoding", "the name is not UTF-8.", rename
    if not name or text in {".", ".."} or "/" in text:
        return "component", "the name is not allowed in a path.", rename
    if any(unicodedata.category(c) == "Cc" for c in text):
        return "control", "the name holds a control character (such as a line end).", rename
    if "\\" in text:
        return "backslash", "the name holds a backslash.", rename
    if len(name) > limits.component_bytes:
        return "long-name", f"the name is longer than {limits.component_bytes} bytes.", rename
    if _is_dot_git(text):
        return "dot-git", "the name is, or stands for, .git on some system.", "Remove it from the repository."
    return None


def fold(name: str) -> str:
    """Equal for names that some file system takes for the same."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name.casefold()).casefold()


def _is_dot_git(name: str) -> bool:
    """`.git` in any case, or what HFS+ (dropped code points) or NTFS (short name, stream, tail) make of it."""
    plain = name.translate(_HFS_IGNORED).casefold()
    return any(n.split(":")[0].rstrip(" .") in {".git", "git~1"} for n in (plain, name.casefold()))


def path_problem(raw: bytes, limits: PushLimits) -> Problem | None:
    """Why a whole path is refused, or None."""
    parts = raw.split(b"/")
    for part in parts:
        found = name_problem(part, limits)
        if found is not None:
            code, text, fix = found
            return Problem(code, show(raw), f"{show(raw)!r}: {text}", fix)
    if len(raw) > limits.path_bytes or len(parts) > limits.depth:
        return _too_deep(show(raw)[:200], limits)
    return None


def tree_facts(
    items: Sequence[TreeItem], children: Mapping[str, TreeFacts], sizes: Mapping[str, int], limits: PushLimits
) -> TreeFacts:
    """Facts of a tree from its entries, the facts of its subtrees and the sizes of its blobs."""
    files = total = oversize = link_count = longest = 0
    depth = 1
    largest: list[tuple[int, str]] = []
    links: list[tuple[str, str]] = []
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for item in items:
        shown = show(item.name)
        problems += _item_problems(item, shown, seen, limits)
        if item.mode == TREE:
            child = children[item.oid]
            files, total, oversize = files + child.files, total + child.bytes, oversize + child.oversize
            depth, longest = max(depth, child.depth + 1), max(longest, len(item.name) + 1 + child.longest)
            link_count += child.link_count
            largest += [(size, f"{shown}/{path}") for size, path in child.largest]
            if len(links) < _LINKS_KEPT:
                name = item.name.decode("utf-8", "replace")
                links += [(f"{name}/{path}", oid) for path, oid in child.links]
            problems += [_below(shown, problem) for problem in child.problems[:_KEPT]]
        elif item.mode != SUBMODULE:
            size = sizes.get(item.oid, 0)
            files, total, longest = files + 1, total + size, max(longest, len(item.name))
            oversize += size > limits.file_bytes
            largest.append((size, shown))
            if item.mode == LINK:
                link_count += 1
                links.append((item.name.decode("utf-8", "replace"), item.oid))
        if len(largest) > 8 * _KEPT:
            largest = sorted(largest, reverse=True)[:_KEPT]
    return TreeFacts(
        files, total, depth, longest, tuple(sorted(largest, reverse=True)[:_KEPT]), oversize,
        tuple(links[:_LINKS_KEPT]), link_count, tuple(problems[:_KEPT]),
    )  # fmt: skip


def _item_problems(item: TreeItem, shown: str, seen: dict[str, str], limits: PushLimits) -> list[Problem]:
    problems = []
    found = name_problem(item.name, limits)
    if found is not None:
        problems.append(Problem(found[0], shown, f"{shown!r}: {found[1]}", found[2]))
    else:
        folded = fold(item.name.decode())
        if folded in seen:
            text = f"{shown!r} and {seen[folded]!r} differ in case or in Unicode form only."
            problems.append(Problem("case", shown, text, "Rename one of them; some systems cannot hold both."))
        seen[folded] = shown
    if item.mode == SUBMODULE:
        fix = "Remove it (git rm --cached) and commit the files themselves."
        problems.append(Problem("submodule", shown, f"{shown!r}: submodules are not supported.", fix))
    elif item.mode not in _MODES:
        problems.append(
            Problem("mode", shown, f"{shown!r}: file mode {item.mode} is not supported.", "Commit it anew.")
        )
    elif item.mode == LINK and shown.casefold() in _NO_LINKS:
        text = f"{shown!r}: this file must not be a symbolic link."
        problems.append(Problem("link", shown, text, "Commit a regular file instead."))
    return problems


def _below(folder: str, problem: Problem) -> Problem:
    path = f"{folder}/{problem.path}"
    if len(path) > 400:
        return problem
    return replace(problem, path=path, text=problem.text.replace(repr(problem.path), repr(path)))


def judge_tree(facts: TreeFacts, limits: PushLimits) -> list[Problem]:
    """The problems of a whole tree, links aside (`link_problems`)."""
    problems = list(facts.problems)
    big = [(size, path) for size, path in facts.largest if size > limits.file_bytes]
    if big:
        named = ", ".join(f"{path} ({human(size)})" for size, path in big)
        more = f" and {facts.oversize - len(big)} more" if facts.oversize > len(big) else ""
        text = f"{named}{more}: files over {human(limits.file_bytes)} must be stored with Git LFS."
        ending = big[0][1].rsplit("/", 1)[-1]
        pattern = f"*.{ending.rsplit('.', 1)[1]}" if "." in ending else ending
        fix = f'git lfs install && git lfs migrate import --include="{pattern}" && git push --force-with-lease'
        problems.append(Problem("big-file", big[0][1], text, fix))
    if facts.files > limits.files:
        text = f"The tree has {facts.files:,} files; the limit is {limits.files:,}."
        problems.append(Problem("files", "", text, "Remove what the app does not need, or pack it into an archive."))
    if facts.bytes > limits.tree_bytes:
        named = ", ".join(f"{path} ({human(size)})" for size, path in facts.largest[:5])
        text = (
            f"The files have {human(facts.bytes)} together; the limit is {human(limits.tree_bytes)}. Largest: {named}."
        )
        problems.append(Problem("tree-size", "", text, "Store large files with Git LFS, or load them at start."))
    if facts.depth > limits.depth or facts.longest > limits.path_bytes:
        problems.append(_too_deep("the tree", limits))
    if facts.link_count > _LINKS_KEPT:
        text = f"The tree has {facts.link_count:,} symbolic links; the limit is {_LINKS_KEPT:,}."
        problems.append(Problem("links", "", text, "Replace links by files."))
    return problems


def _too_deep(path: str, limits: PushLimits) -> Problem:
    text = f"{path}: paths may have at most {limits.depth} parts and {limits.path_bytes} bytes."
    return Problem("deep", path, text, "Move the files up.")


def link_problems(links: Mapping[str, str]) -> list[Problem]:
    """Symbolic links (path -> target) that lead out of the tree, by themselves or through each other."""
    problems = []
    for path in links:
        reason = _escape(path, links)
        if reason:
            target = show(links[path].encode())[:200]
            text = f"{show(path.encode())!r} links to {target!r}: {reason}"
            problems.append(Problem("link", path, text, "Link to a file in the repository, or commit the file itself."))
    return problems[:_KEPT]


def _escape(path: str, links: Mapping[str, str]) -> str | None:
    """Follow a link the way a kernel does, in the tree alone."""
    todo, here, hops = path.split("/")[::-1], list[str](), 0
    while todo:
        part = todo.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            if not here:
                return "it leads out of the repository."
            here.pop()
            continue
        here.append(part)
        target = links.get("/".join(here))
        if target is not None:
            hops += 1
            if hops > _LINK_HOPS:
                return "it leads round in a circle."
            if target.startswith("/"):
                return "absolute links are not allowed."
            if not target or "\0" in target or "\\" in target:
                return "the target is not a path."
            here.pop()
            todo += target.split("/")[::-1]
        if any(part == p and _is_dot_git(p) for p in here[-1:]):
            return "it leads into .git."
    return None


def token_lines(blob: bytes) -> list[int]:
    """Numbers of the lines that hold an access token; a placeholder of few distinct letters is none."""
    if b"\0" in blob[:8000]:
        return []
    found = (m for m in TOKEN.finditer(blob) if len(set(m[1])) >= 8)
    return sorted({blob.count(b"\n", 0, m.start()) + 1 for m in found})


def token_problem(path: str, lines: Sequence[int]) -> Problem:
    text = f"{path}, line {', '.join(map(str, lines[:5]))}: holds an access token (hf_…)."
    fix = "Revoke that token, take it out of the file and of the history, and give it to the app as a secret."
    return Problem("token", path, text, fix)


def human(size: int) -> str:
    """Bytes for people: `14.3 MiB`."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}".replace(".0 ", " ")


def refusal_lines(problems: Iterable[Problem]) -> list[str]:
    """What the person who pushed reads."""
    found = list(dict.fromkeys(problems))
    lines = ["", "Push refused; nothing was stored."]
    for problem in found[:_KEPT]:
        lines += [f"  * {problem.text}", f"    Fix: {problem.fix}"]
    if len(found) > _KEPT:
        lines.append(f"  … and {len(found) - _KEPT} more.")
    return [*lines, ""]


_FSCK = re.compile(r"object ([0-9a-f]{40}): (\w+): ([^\n]*)")
_FSCK_FIX = {
    "hasDot": "Remove the entry named '.', '..' or '.git' (in any disguise) from the history.",
    "gitmodules": "Remove .gitmodules from the history; submodules are not supported.",
    "": "Rebuild the commits that hold it (git fsck names it), then push again.",
}


def unpack_refusal(said: str, unpack: str, limits: PushLimits) -> list[str]:
    """What the person reads where git itself refused the objects: `said` are its words, `unpack` its report."""
    if "exceeds maximum allowed size" in said:
        text = f"The push is larger than {human(limits.pack_bytes)}."
        return refusal_lines([Problem("pack-size", "", text, "Store large files with Git LFS, or push in parts.")])
    found = _FSCK.search(said)
    if found is None:
        text = f"The objects were not accepted: {unpack}."
        return refusal_lines([Problem("unpack", "", text, "Push again; if it stays, the lines above tell more.")])
    oid, what, detail = found.groups()
    fix = next(fix for start, fix in _FSCK_FIX.items() if what.startswith(start))
    return refusal_lines([Problem("fsck", oid, f"Object {oid[:10]} is not allowed: {detail} ({what}).", fix)])
