"""One life of apps, as whoever runs this: start, answer, look around, be stopped. Prints what it saw as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from spaces_platform.ports import Resources
from tests.process import apps
from tests.process.harness import SMALL, exited, machine, ready, text, wait_for

SPY = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found = []
for name in os.listdir("/proc"):
    try:
        if name.isdigit() and b"canary-91" in open(f"/proc/{name}/environ", "rb").read():
            found.append(name)
    except OSError:
        continue
print(json.dumps([os.getuid(), int(status["CapEff"], 16), found]), flush=True)
raise SystemExit(3)
"""

BOMB = """
import os, time
children = 0
try:
    for children in range(200):
        if os.fork() == 0:
            time.sleep(600)
except OSError:
    pass
print("forked", children, flush=True)
time.sleep(600)
"""


def main() -> None:
    with machine() as place:
        orchestrator = place.orchestrator()
        serving = place.spec(apps.server(), env={"SECRET": "canary-91"})
        spy = place.spec(SPY)
        bomb = place.spec(BOMB, resources=replace(SMALL, processes=20))
        for spec in (serving, spy, bomb):
            orchestrator.start(spec)
        ready(orchestrator, serving.id)
        seen = exited(orchestrator, spy.id)
        uid, capabilities, found = json.loads(text(orchestrator, spy.id))
        bounded = True
        if orchestrator.isolation().level.value == "bubblewrap":
            said = wait_for("the bomb is bounded", lambda: text(orchestrator, bomb.id))
            bounded = said.startswith("forked") and "199" not in said
        orchestrator.stop(bomb.id, grace=0)
        hog = place.spec(apps.MEMORY_HOG, resources=Resources(memory=64 << 20))
        orchestrator.start(hog)
        out_of_memory = exited(orchestrator, hog.id).out_of_memory
        orchestrator.stop(serving.id)
        wait_for("it stops", lambda: serving.id not in orchestrator.observe())
        print(
            json.dumps(
                {
                    "level": orchestrator.isolation().level.value,
                    "uid": uid,
                    "capabilities": capabilities,
                    "finds": found,
                    "exit_code": seen.exit_code,
                    "out_of_memory": out_of_memory,
                    "bomb_bounded": bool(bounded),
                    "stopped": True,
                    "limits": dict(orchestrator.limits_enforced_by()),
                }
            )
        )


if __name__ == "__main__":
    main()
