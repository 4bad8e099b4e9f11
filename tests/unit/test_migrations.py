"""The schema: a fresh database gets all of it, a current one is left alone, the newest revision is alembic's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlmodel import SQLModel

import spaces_platform.models  # noqa: F401  (fills SQLModel.metadata)
from spaces_platform.store import MIGRATIONS, Store, newest_revision
from tests.services import databases


def test_newest_revision_is_what_alembic_finds() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert newest_revision() == ScriptDirectory.from_config(config).get_current_head()


def test_migrate_makes_every_table_and_does_nothing_twice(tmp_path: Path) -> None:
    store = Store(databases.url_of(tmp_path))
    store.migrate()
    store.migrate()
    with store.read() as db:
        assert db.connection().execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [
            newest_revision()
        ]
    assert set(SQLModel.metadata.tables) <= set(inspect(store.engine).get_table_names())
    store.close()


def test_a_start_on_a_current_schema_does_not_load_the_migration_tool(tmp_path: Path) -> None:
    url = databases.url_of(tmp_path)
    store = Store(url)
    store.migrate()
    store.close()
    code = f"""
import sys
from spaces_platform.store import Store
Store({url!r}).migrate()
sys.exit('alembic' in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)
