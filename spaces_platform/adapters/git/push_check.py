"""Judges one push: walks the objects in quarantine and applies `push_rules` to them.

It owns which objects are looked at and in which order; the rules are elsewhere, and so is the hook that asks.
Invariant: the work is linear in distinct objects and bounded by PushLimits; a push is accepted only if every check ran.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from builders.types import SourceTree
from spaces_platform.adapters.git import push_rules as rules
from spaces_platform.adapters.git.objects import (
    GitSourceTree,
    ObjectReader,
    all_headers,
    headers,
    parse_tree,
    reading,
)
from spaces_platform.adapters.git.process import GitAt
from spaces_platform.adapters.git.push_rules import ZERO, Problem, PushLimits, TreeFacts, TreeItem
from spaces_platform.ports import RefUpdate

log = logging.getLogger(__name__)

MAIN = "refs/heads/main"
Advise = Callable[[SourceTree], Sequence[str]]
_TAG_CHAIN = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the hook is told."""

    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """Lines for the person who pushed, where the push is accepted."""

    @property
    def accepted(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        return list(self.notes) if self.accepted else rules.refusal_lines(self.problems)


class FactsMemo:
    """Facts of trees by id, least recently used dropped. Right for all repositories: an id names the content."""

    def __init__(self, size: int = 20_000) -> None:
        self._size, self._facts, self._lock = size, OrderedDict[str, TreeFacts](), Lock()

    def get(self, oid: str) -> TreeFacts | None:
        with self._lock:
            facts = self._facts.get(oid)
            if facts is not None:
                self._facts.move_to_end(oid)
            return facts

    def put(self, oid: str, facts: TreeFacts) -> None:
        with self._lock:
            self._facts[oid] = facts
            while len(self._facts) > self._size:
                self._facts.popitem(last=False)


@dataclass(frozen=True)
class PushCheck:
    """The pre-receive decision for one repository. The memo belongs to one set of limits."""

    at: GitAt
    limits: PushLimits
    memo: FactsMemo
    advise: Advise | None = None

    def judge(self, quarantine: Path | None, updates: Sequence[RefUpdate], refs: Mapping[str, str]) -> Verdict:
        """Decide on ref updates whose new objects wait in `quarantine` (None: the push only deletes).

        `refs` are the refs as they are. Raises GitError, TooLarge where an object cannot be read.
        """
        problems = [p for u in updates if u.new != ZERO and (p := rules.ref_problem(u.ref, self.limits))]
        problems += self._count_refs(updates, refs)
        tips = [update for update in updates if update.new != ZERO]
        if problems or not tips:
            return Verdict(tuple(problems))
        at = GitAt(self.at.git, self.at.path, quarantine)
        pushed = self._pushed(quarantine)
        problems += self._repo_size(quarantine)
        with reading(at) as objects:
            trees: dict[str, str] = {}
            for update in tips:
                tree = _tree_of(objects, update.new)
                if tree is None:
                    text = f"{update.ref}: it must point to a commit."
                    problems.append(Problem("ref", update.ref, text, "Push a branch, or a tag of a commit."))
                else:
                    trees[update.ref] = tree
            walk = _TreeWalk(at, objects, self.limits, self.memo, pushed)
            for tree in dict.fromkeys(trees.values()):
                problems += walk.problems(tree)
            if not problems:
                problems += self._tokens(at, objects, pushed, tips)
        return Verdict(tuple(problems), () if problems else tuple(self._notes(at, updates)))

    def _pushed(self, quarantine: Path | None) -> dict[str, tuple[str, int]]:
        """Kind and size of every object the push brought."""
        if quarantine is None:
            return {}
        alone = GitAt(self.at.git, self.at.path, quarantine, alone=True)
        return {header.oid: (header.kind, header.size) for header in all_headers(alone)}

    def _count_refs(self, updates: Sequence[RefUpdate], refs: Mapping[str, str]) -> list[Problem]:
        after = set(refs) | {u.ref for u in updates if u.new != ZERO}
        after -= {u.ref for u in updates if u.new == ZERO}
        if len(after) <= self.limits.refs or len(after) <= len(refs):
            return []
        text = f"The repository would have {len(after)} branches and tags; the limit is {self.limits.refs}."
        return [Problem("refs", "", text, "Delete some first: git push origin --delete NAME.")]

    def _repo_size(self, quarantine: Path | None) -> list[Problem]:
        size = disk_bytes(self.at.path / "objects", besides="tmp_objdir-")
        size += 0 if quarantine is None else disk_bytes(quarantine)
        if quarantine is None or size <= self.limits.repo_bytes:
            return []
        text = f"The repository would take {rules.human(size)}; the limit is {rules.human(self.limits.repo_bytes)}."
        return [Problem("repo-size", "", text, "Store large files with Git LFS, or start a new history.")]

    def _tokens(
        self, at: GitAt, objects: ObjectReader, pushed: Mapping[str, tuple[str, int]], tips: Sequence[RefUpdate]
    ) -> list[Problem]:
        found: dict[str, list[int]] = {}
        left = self.limits.scan_total
        for oid, (kind, size) in pushed.items():
            if kind == "blob" and 33 <= size <= self.limits.scan_bytes and size <= left:
                left -= size
                lines = rules.token_lines(objects.read(oid)[1])
                if lines:
                    found[oid] = lines
        if not found:
            return []
        named = at.lines("rev-list", "--objects", "--stdin", given="".join(f"{u.new}\n" for u in tips).encode())
        paths = dict(line.split(" ", 1) for line in named if " " in line)
        return [rules.token_problem(rules.show(paths.get(o, o[:10]).encode()), n) for o, n in found.items()]

    def _notes(self, at: GitAt, updates: Sequence[RefUpdate]) -> list[str]:
        main = next((u for u in updates if u.ref == MAIN), None)
        notes = []
        if main is None and any(u.ref.startswith("refs/heads/") and u.new != ZERO for u in updates):
            notes.append("Stored. Only the branch main is deployed; to deploy this: git push origin HEAD:main")
        if main is not None and main.new != ZERO and self.advise is not None:
            try:
                notes += self.advise(GitSourceTree(at, main.new, self.limits))
            except Exception:  # advice is a courtesy: its failure is ours to see, and no reason to refuse the push
                log.exception("advice on a push failed", extra={"repo": str(self.at.path), "commit": main.new})
                notes.append("Note: the README could not be checked; the build will tell.")
        return notes


class _TreeWalk:
    """Facts of trees, bottom up, each distinct tree once."""

    def __init__(
        self,
        at: GitAt,
        objects: ObjectReader,
        limits: PushLimits,
        memo: FactsMemo,
        pushed: Mapping[str, tuple[str, int]],
    ) -> None:
        self._at, self._objects, self._limits, self._memo, self._pushed = at, objects, limits, memo, pushed
        self._facts: dict[str, TreeFacts] = {}

    def problems(self, root: str) -> list[Problem]:
        """Everything wrong with the tree `root`."""
        facts = self._walk(root)
        if facts is None:
            text = f"The tree has more than {self._limits.trees:,} folders."
            return [Problem("folders", "", text, "Remove what the app does not need.")]
        problems = rules.judge_tree(facts, self._limits)
        if facts.links and facts.link_count <= len(facts.links):
            problems += self._links(facts)
        return problems

    def _walk(self, root: str) -> TreeFacts | None:
        items: dict[str, list[TreeItem]] = {}
        order, todo = list[str](), [root]
        while todo:
            oid = todo.pop()
            known = self._facts.get(oid) or self._memo.get(oid)
            if known is not None:
                self._facts[oid] = known
            elif oid not in items:
                items[oid] = parse_tree(self._objects.read(oid)[1])
                order.append(oid)
                todo += [item.oid for item in items[oid] if item.mode == rules.TREE]
                if len(items) > self._limits.trees:
                    return None
        sizes = self._sizes({i.oid for found in items.values() for i in found if i.mode not in _NO_SIZE})
        for oid in _bottom_up(order, items):
            self._facts[oid] = rules.tree_facts(items[oid], self._facts, sizes, self._limits)
            self._memo.put(oid, self._facts[oid])
        return self._facts[root]

    def _sizes(self, blobs: set[str]) -> dict[str, int]:
        sizes = {oid: self._pushed[oid][1] for oid in blobs if oid in self._pushed}
        rest = sorted(blobs - sizes.keys())
        return sizes | {h.oid: h.size for h in (headers(self._at, rest) if rest else [])}

    def _links(self, facts: TreeFacts) -> list[Problem]:
        targets = {}
        for path, oid in facts.links:
            kind, content = self._objects.read(oid)
            if kind != "blob" or len(content) > self._limits.path_bytes:
                text = f"{rules.show(path.encode())!r}: the target of the link is too long."
                return [Problem("link", path, text, "Commit the file itself.")]
            targets[path] = content.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
        return rules.link_problems(targets)


_NO_SIZE = {rules.TREE, rules.SUBMODULE}


def _bottom_up(order: Sequence[str], items: Mapping[str, Sequence[TreeItem]]) -> list[str]:
    """Trees with children before parents. Ids cannot form a circle: each is a hash of its children."""
    done: dict[str, None] = {}
    todo = [(oid, False) for oid in order]
    while todo:
        oid, children_done = todo.pop()
        if children_done:
            done[oid] = None
        elif oid not in done:
            todo.append((oid, True))
            todo += [(i.oid, False) for i in items[oid] if i.mode == rules.TREE and i.oid in items]
    return list(done)


def _tree_of(objects: ObjectReader, oid: str) -> str | None:
    """The tree of a commit, or of the commit a tag names; None for anything else."""
    for _ in range(_TAG_CHAIN):
        try:
            kind, content = objects.read(oid)
        except KeyError:
            return None
        first = content.split(b"\n", 1)[0].decode("ascii", "replace")
        if kind == "commit":
            return first.removeprefix("tree ")
        if kind != "tag":
            return None
        oid = first.removeprefix("object ")
    return None


def disk_bytes(folder: Path, besides: str = "/") -> int:
    """Bytes of all files below a folder, folders named `besides…` left out; what vanishes meanwhile counts nothing."""
    total, todo = 0, [folder]
    while todo:
        try:
            with os.scandir(todo.pop()) as found:
                for entry in found:
                    if entry.name.startswith(besides):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total
