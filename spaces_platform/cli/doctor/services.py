"""Redis and Postgres: do they answer, and will they keep what the platform gives them.

`check_…` ask once, within SECONDS; every judge is a pure function of what was answered. No password is ever shown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from spaces_platform.cli.doctor.check import Check, fail, ok, version_of, warn

SECONDS = 4.0
SKEW_SECONDS = 2.0
"""Times in the database are compared with this machine's clock; leases are 20 s."""
REDIS_FLOOR = (6, 0, 0)
POSTGRES_FLOOR = 130000
"""server_version_num of 13, the oldest that its makers kept up in 2025."""
CONNECTIONS = 40
"""What the control plane and two workers hold at most, with the pools that they have."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class RedisFacts:
    where: str
    version: str
    is_local: bool
    open_to_all: bool
    """It answers without a password."""
    aof: bool
    saves: bool | None
    """Whether it writes snapshots; None: it does not say (CONFIG is refused)."""
    last_write_ok: bool
    policy: str
    maxmemory: int
    skew: float


@dataclass(frozen=True, slots=True)
class PostgresFacts:
    where: str
    version: int
    """server_version_num."""
    encoding: str
    max_connections: int
    used: int
    read_only: bool
    fsync: bool
    synchronous_commit: str
    skew: float


def place(url: str) -> str:
    """Where a URL leads, without who and how. Pure."""
    parts = urlsplit(url)
    if parts.scheme in ("unix", "redis+socket"):
        return parts.path
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path}"


# --- Redis --------------------------------------------------------------------------------------
def check_redis(url: str) -> list[Check]:
    try:
        import redis
    except ImportError:
        return [fail("redis", "the redis package for Python is not installed", "Run `make single-host`.")]
    where = place(url)
    options = {"socket_timeout": SECONDS, "socket_connect_timeout": SECONDS}
    try:
        with redis.Redis.from_url(url, **options) as client:
            info: dict[str, Any] = client.info()
            began = time.time()
            seconds, micros = client.time()
            skew = seconds + micros / 1e6 - (began + time.time()) / 2
            config = _config(client)
            facts = redis_facts(url, info, config, skew, open_to_all=_open_to_all(url, options))
    except (redis.RedisError, OSError, ValueError) as exc:
        return [judge_no_redis(where, str(exc))]
    return judge_redis(facts)


def _config(client: Any) -> Mapping[str, str]:
    """Its configuration; empty where the command is refused, as hosted ones do."""
    import redis

    try:
        return {**client.config_get("save"), **client.config_get("maxmemory-policy")}
    except redis.ResponseError:
        return {}


def _open_to_all(url: str, options: Mapping[str, Any]) -> bool:
    import redis

    parts = urlsplit(url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        with redis.Redis.from_url(bare, **options) as client:
            return bool(client.ping())
    except (redis.AuthenticationError, redis.ResponseError):
        return False


def redis_facts(
    url: str, info: Mapping[str, Any], config: Mapping[str, str], skew: float, *, open_to_all: bool
) -> RedisFacts:
    """From INFO and CONFIG GET. Pure."""
    parts = urlsplit(url)
    statuses = (info.get("aof_last_write_status", "ok"), info.get("rdb_last_bgsave_status", "ok"))
    return RedisFacts(
        where=place(url),
        version=str(info.get("redis_version", "")),
        is_local=parts.scheme in ("unix", "redis+socket") or (parts.hostname or "localhost") in _LOOPBACK,
        open_to_all=open_to_all,
        aof=bool(info.get("aof_enabled")),
        saves=bool(config["save"]) if "save" in config else None,
        last_write_ok=all(status == "ok" for status in statuses),
        policy=str(config.get("maxmemory-policy") or info.get("maxmemory_policy", "")),
        maxmemory=int(info.get("maxmemory", 0)),
        skew=skew,
    )


def judge_no_redis(where: str, error: str) -> Check:
    if any(word in error for word in ("NOAUTH", "WRONGPASS", "invalid username-password", "Authentication")):
        return fail("redis", f"{where} refuses the password", "Put it into SPACES_REDIS: redis://:PASSWORD@HOST:6379/0")
    fix = "Start it (apt install redis-server), or set SPACES_REDIS to where it is."
    return fail("redis", f"no answer from {where}: {error[:200]}", fix)


def judge_redis(facts: RedisFacts) -> list[Check]:
    return [
        _redis_version(facts),
        _redis_password(facts),
        _redis_memory(facts),
        _redis_disk(facts),
        _skew("redis", facts.skew),
    ]


def _redis_version(facts: RedisFacts) -> Check:
    version = version_of(facts.version)
    if version is None or version < REDIS_FLOOR:
        return fail("redis", f"{facts.version or 'unknown version'} at {facts.where}", "Version 6 or later is needed.")
    return ok("redis", f"{facts.version} at {facts.where}")


def _redis_password(facts: RedisFacts) -> Check:
    name = "redis password"
    if not facts.open_to_all:
        return ok(name, "asked for")
    fix = "Set requirepass in redis.conf, and SPACES_REDIS=redis://:PASSWORD@HOST:6379/0."
    if facts.is_local:
        return warn(name, "none: every program of this machine may write to the queue", fix)
    return fail(name, "none: everybody who reaches it may write to the queue", fix)


def _redis_memory(facts: RedisFacts) -> Check:
    name = "redis memory"
    found = f"{facts.policy or 'unknown policy'}, " + (
        f"at most {facts.maxmemory >> 20} MiB" if facts.maxmemory else "no limit of its own"
    )
    if facts.policy != "noeviction":
        return fail(name, found, "It would drop queued work when full: set maxmemory-policy noeviction in redis.conf.")
    if not facts.maxmemory:
        return warn(name, found, "Set maxmemory in redis.conf (256mb is plenty), so that it cannot take the machine.")
    return ok(name, found)


def _redis_disk(facts: RedisFacts) -> Check:
    name = "redis disk"
    if not facts.last_write_ok:
        return fail(name, "its last write to the disk failed", "See its log; it may refuse writes until there is room.")
    if facts.aof:
        return ok(name, "append-only file")
    fix = "Nothing accepted is lost, but a restart delays queued builds: set appendonly yes in redis.conf."
    if facts.saves is None:
        return warn(name, "no append-only file, and it does not say whether it writes snapshots", fix)
    return warn(name, "snapshots only" if facts.saves else "keeps nothing over a restart", fix)


def _skew(what: str, skew: float) -> Check:
    name = f"{what} clock"
    found = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > SKEW_SECONDS:
        return fail(name, found, "Keep both by NTP (apt install chrony): leases and deadlines are compared with it.")
    return ok(name, f"within {SKEW_SECONDS:.0f} s of this machine's")


# --- Postgres -----------------------------------------------------------------------------------
POSTGRES_QUERY = """
SELECT current_setting('server_version_num')::int,
       current_setting('server_encoding'),
       current_setting('max_connections')::int,
       (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend'),
       pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool,
       current_setting('fsync')::bool,
       current_setting('synchronous_commit'),
       extract(epoch FROM clock_timestamp())::float8
"""


def check_postgres(url: str) -> list[Check]:
    try:
        import psycopg
    except ImportError:
        return [fail("postgres", "the psycopg package for Python is not installed", "Run `make single-host`.")]
    from sqlalchemy import make_url

    target = make_url(url)
    where = f"{target.host or 'local socket'}:{target.port or 5432}/{target.database or ''}"
    options: dict[str, Any] = {
        "host": target.host, "port": target.port, "user": target.username, "password": target.password,
        "dbname": target.database, "connect_timeout": int(SECONDS), **target.query,
    }  # fmt: skip
    try:
        with psycopg.connect(**{key: value for key, value in options.items() if value is not None}) as connection:
            connection.execute(f"SET statement_timeout = {int(SECONDS * 1000)}")
            began = time.time()
            row = connection.execute(POSTGRES_QUERY).fetchone()
            now = (began + time.time()) / 2
    except psycopg.Error as exc:
        return [judge_no_postgres(where, str(exc))]
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    version, encoding, most, used, read_only, fsync, commit, clock = row
    return judge_postgres(
        PostgresFacts(where, version, encoding, most, used, read_only, fsync, commit, skew=clock - now)
    )


def judge_no_postgres(where: str, error: str) -> Check:
    line = error.strip().splitlines()[-1][:200] if error.strip() else "no reason given"
    if "authentication failed" in error or "no password supplied" in error:
        fix = "Put user and password into SPACES_DATABASE: postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        return fail("postgres", f"{where} refuses the password", fix)
    if "does not exist" in error:
        return fail(
            "postgres", f"{where}: {line}", "Make it: createuser -P spaces, then createdb -O spaces -E UTF8 spaces"
        )
    fix = "Start it (apt install postgresql), or set SPACES_DATABASE to where it is."
    return fail("postgres", f"no answer from {where}: {line}", fix)


def judge_postgres(facts: PostgresFacts) -> list[Check]:
    return [
        _postgres_version(facts), _postgres_encoding(facts), _postgres_connections(facts), _postgres_safety(facts),
        _skew("postgres", facts.skew),
    ]  # fmt: skip


def _postgres_version(facts: PostgresFacts) -> Check:
    found = f"{facts.version // 10000}.{facts.version % 10000} at {facts.where}"
    if facts.read_only:
        return fail("postgres", f"{found} can only be read", "Name the primary in SPACES_DATABASE, not a standby.")
    if facts.version < POSTGRES_FLOOR:
        return fail("postgres", found, f"Version {POSTGRES_FLOOR // 10000} or later is needed.")
    return ok("postgres", found)


def _postgres_encoding(facts: PostgresFacts) -> Check:
    if facts.encoding == "UTF8":
        return ok("postgres encoding", facts.encoding)
    fix = "Titles and commit messages are any Unicode: make the database with createdb -E UTF8 -T template0."
    return fail("postgres encoding", facts.encoding, fix)


def _postgres_connections(facts: PostgresFacts) -> Check:
    name, found = "postgres connections", f"{facts.used} of {facts.max_connections} in use"
    if facts.max_connections < CONNECTIONS:
        return fail(name, found, f"The platform holds up to {CONNECTIONS}: raise max_connections in postgresql.conf.")
    if facts.max_connections - facts.used < CONNECTIONS:
        fix = (
            f"The platform holds up to {CONNECTIONS}: raise max_connections, or see who holds them (pg_stat_activity)."
        )
        return warn(name, found, fix)
    return ok(name, found)


def _postgres_safety(facts: PostgresFacts) -> Check:
    name = "postgres durability"
    if not facts.fsync:
        return fail(name, "fsync is off", "A power cut would destroy the database: set fsync = on in postgresql.conf.")
    if facts.synchronous_commit in ("off",):
        return warn(name, "synchronous_commit is off", "The last pushes could be lost at a crash: set it to on.")
    return ok(name, f"fsync on, synchronous_commit {facts.synchronous_commit}")
