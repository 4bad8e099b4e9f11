"""T11: cookies and origins of a hostile app on the platform's own domain, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge import hostile
from tests.edge.servers import free_port
from tests.faults import apps
from tests.faults.system import System


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_hostile_app_has_no_part_in_the_platforms_session(tmp_path: Path) -> None:
    tls, ask = free_port(), free_port()
    system = System(tmp_path, **hostile.settings(tls), tls_ask=f"127.0.0.1:{ask}").up()
    try:
        system.create("evil")
        system.push("evil", {**apps.python("evil"), "app.py": hostile.APP})
        system.wait_stage("evil", "RUNNING", 60)
        with hostile.front(system, tmp_path, tls, ask) as it:
            hostile.attack(it)
    finally:
        system.down()
