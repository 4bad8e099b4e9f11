"""NVIDIA's programs for tests on machines without their GPUs: the engine and the platform call these as they call the
real ones, by the same names and the same protocol. A GPU is a device node, which the hook puts into the container.

What is as in NVIDIA's container toolkit: the engine's own driver for `DeviceRequests` looks for the hook in PATH, names
the GPUs in NVIDIA_VISIBLE_DEVICES and has runc call it before the app starts; the runtime is runc with that hook for
every container whose environment names GPUs, whoever put it there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

HOOK = "nvidia-container-runtime-hook"
RUNTIME = "nvidia-container-runtime"
SMI = "nvidia-smi"
# /dev/null by another name: what every container may use.
_HOOK = """\
#!{python} -I
import json, os, subprocess, sys
state = json.load(sys.stdin)
with open(os.path.join(state["bundle"], "config.json")) as file:
    config = json.load(file)
said = dict(line.split("=", 1) for line in config["process"]["env"]).get("NVIDIA_VISIBLE_DEVICES", "void")
gpus = json.load(open({gpus!r}))
wanted = [] if said in ("", "void", "none") else list(gpus) if said == "all" else said.split(",")
unknown = [gpu for gpu in wanted if gpu not in gpus]
if unknown or wanted and os.path.exists({broken!r}):
    sys.exit("nvidia-container-cli: device error: " + (", ".join(unknown) or "the driver is away"))
root = os.path.realpath(os.path.join(state["bundle"], config["root"]["path"]))
for gpu in wanted:
    device = f"{{root}}/dev/nvidia{{list(gpus).index(gpu)}}"
    subprocess.run(["nsenter", "-t", str(state["pid"]), "-m", "mknod", "-m", "666", device, "c", "1", "3"], check=True)
"""
_RUNTIME = """\
#!{python} -I
import json, os, sys
words = sys.argv[1:]
if "create" in words:
    path = os.path.join(words[words.index("--bundle") + 1], "config.json")
    with open(path) as file:
        config = json.load(file)
    hooks = config.setdefault("hooks", {{}}).setdefault("prestart", [])
    if not any(one["path"] == {hook!r} for one in hooks):
        path_of = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        hooks.append({{"path": {hook!r}, "args": ["{name}", "prestart"], "env": path_of}})
    with open(path, "w") as file:
        json.dump(config, file)
os.execv({runc!r}, ["runc", *words])
"""
_SMI = """\
#!{python} -I
import json, os, sys
if sys.argv[1:] != ["--query-gpu=uuid,name", "--format=csv,noheader"]:
    sys.exit("not among what is asked here")
if os.path.exists({broken!r}):
    print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    sys.exit(9)
for uuid, name in json.load(open({gpus!r})).items():
    print(f"{{uuid}}, {{name}}")
"""


class Toolkit:
    """A folder for PATH, with the three programs; `gpus` are name by id. It fails on command."""

    def __init__(self, folder: Path, gpus: dict[str, str]) -> None:
        runc = shutil.which("runc")
        if runc is None or shutil.which("nsenter") is None:
            pytest.skip("needs runc and nsenter (Debian packages runc, util-linux)")
        folder.mkdir()
        self.folder, self.gpus, self._broken = folder, gpus, folder / "broken"
        (folder / "gpus.json").write_text(json.dumps(gpus))
        facts = {
            "python": sys.executable, "gpus": str(folder / "gpus.json"), "broken": str(self._broken),
            "hook": str(folder / HOOK), "name": HOOK, "runc": runc,
        }  # fmt: skip
        for name, text in ((HOOK, _HOOK), (RUNTIME, _RUNTIME), (SMI, _SMI)):
            (folder / name).write_text(text.format(**facts))
            (folder / name).chmod(0o755)

    def fail(self, broken: bool = True) -> None:
        """Whether the driver is away from now on."""
        self._broken.touch() if broken else self._broken.unlink()
