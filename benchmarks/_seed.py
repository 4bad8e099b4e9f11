"""A populated data directory in seconds: accounts, sleeping Spaces, hosts, builds, ended deployments, repositories.

Rows go through the real tables, in the state that a Space has which was pushed, built, ran and fell asleep; the plan is
a real plan of a real commit. Each Space has a repository of its own: copies of one, whose files are hard links.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from sqlalchemy import insert, update

from builders.layout import Ref
from spaces_platform.models import Account, Build, Counter, Deployment, Event, Host, Space
from spaces_platform.names import loopback_address, slug
from spaces_platform.planning import card_of, plan_head, plan_to_json
from spaces_platform.platform import Platform
from spaces_platform.ports import FileChange
from spaces_platform.settings import Settings
from spaces_platform.space_directory import repo_id
from spaces_platform.wiring.assembly import build_platform

ROOT = Path(__file__).resolve().parent.parent
PER_OWNER = 50
PAGE = 2000
DAY = 86400.0


def seed(data: Path, count: int) -> None:
    """Make `data` hold `count` sleeping Spaces."""
    platform = build_platform(Settings.load(data=data))
    try:
        platform.recover()
        head, tree_plan = _template(platform)
        _accounts(platform, count)
        for first in range(1, count + 1, PAGE):
            _page(platform, range(first, min(first + PAGE, count + 1)), head, tree_plan)
    finally:
        platform.close()


def _template(platform: Platform) -> tuple[str, dict[str, Any]]:
    """A repository with one commit of the example app, and what the planner makes of it."""
    repo = platform.repos.create("template")
    folder = ROOT / "examples" / "gradio-hello"
    changes = [FileChange(path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()]
    head = repo.commit("refs/heads/main", changes, message="First", author="admin", email="admin@localhost")
    platform.repos.maintain(repo)  # one pack, not a file per object
    refs = _path(platform, "template") / "refs" / "heads"
    refs.mkdir(parents=True, exist_ok=True)
    (refs / "main").write_text(head + "\n")
    planner = platform.reconciler.planner
    planned = plan_head(repo.tree(head), planner.catalogue, planner.pythons())
    if planned.plan is None or planned.config is None:
        raise RuntimeError(f"the example cannot be planned: {planned.message}")
    return head, {"plan": plan_to_json(planned.plan), "card": card_of(planned.config)}


def _path(platform: Platform, id: str) -> Path:
    return platform.settings.data / "repos" / f"{id}.git"


def _accounts(platform: Platform, count: int) -> None:
    names = [f"user-{n}" for n in range(count // PER_OWNER + 1)]
    with platform.store.write() as tx:
        rows = [Account(name=name, key=name, email=f"{name}@example.org", created_at=time.time()) for name in names]
        tx.execute(insert(Account), _rows(rows))


def _page(platform: Platform, ids: range, head: str, made: dict[str, Any]) -> None:
    now, plan = time.time(), made["plan"]
    spaces, hosts, builds, deployments, events = [], [], [], [], []
    for id in ids:
        owner, name, title = 2 + id // PER_OWNER, f"app-{id}", f"App {id}"
        artifact, account = str(Ref(str(owner), plan["id"])), f"user-{id // PER_OWNER}"
        at = now - DAY - id
        spaces.append(
            Space(
                id=id, owner_id=owner, owner=account, name=name, key=name, creator_id=owner, sdk="gradio", title=title,
                emoji="👋", created_at=at - DAY, modified_at=at, head=head, planned_for=f"{head}:",
                plan_id=plan["id"], plan=plan, card=made["card"], stage="SLEEPING", last_good=artifact,
                last_active_at=at, slept_at=at + 1800, route_version=id,
            )
        )  # fmt: skip
        hosts.append(Host(host=f"{slug(account, name)}.localhost", space_id=id))
        hosts.append(Host(host=loopback_address(id), space_id=id, kind="loopback"))
        builds.append(
            Build(
                space_id=id, commit=head, plan_id=plan["id"], plan=plan, status="SUCCEEDED", artifact=artifact,
                phase="sealing", created_at=at, started_at=at, ended_at=at + 9, lock="gradio==6.31.0\n", tries=1,
            )
        )  # fmt: skip
        deployments.append(
            Deployment(
                space_id=id, commit=head, artifact=artifact, plan=plan["run"], status="GONE",
                endpoint="127.0.0.1:20001", created_at=at + 9, ready_at=at + 13, routed_at=at + 13, ended_at=at + 1810,
            )
        )  # fmt: skip
        kinds = ("space.created", "space.pushed", "build.queued", "build.succeeded", "space.asleep")
        events += [Event(at=at + n, kind=kind, space_id=id, actor=account) for n, kind in enumerate(kinds)]
    with platform.store.write() as tx:
        for rows in (spaces, hosts, builds, deployments, events):
            tx.execute(insert(type(rows[0])), _rows(rows))
        tx.execute(update(Counter).where(Counter.name == "route").values(value=ids[-1]))  # type: ignore[arg-type]
    template = _path(platform, "template")
    for id in ids:
        shutil.copytree(template, _path(platform, repo_id(id)), copy_function=os.link)


def _rows(models: list[Any]) -> list[dict[str, Any]]:
    """Column values; those that the database gives (an id) are left to it."""
    return [{k: v for k, v in row.model_dump().items() if not (k == "id" and v is None)} for row in models]
