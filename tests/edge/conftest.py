"""Servers that several tests share."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge import servers


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Redis]:
    """As deploy/ has it: a password, an append-only file, a limit, nothing dropped."""
    options = ("--appendonly", "yes", "--maxmemory", "64mb", "--maxmemory-policy", "noeviction")
    with servers.redis(tmp_path_factory.mktemp("redis"), *options, password=secrets.token_urlsafe(12)) as made:
        yield made


@pytest.fixture(scope="session")
def careless_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Redis]:
    with servers.redis(tmp_path_factory.mktemp("redis"), "--save", "", "--maxmemory-policy", "allkeys-lru") as made:
        yield made


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[servers.Postgres]:
    # Not below pytest's own directory, which is root's alone.
    with tempfile.TemporaryDirectory(prefix="spaces-pg-") as folder, servers.postgres(Path(folder)) as made:
        yield made
