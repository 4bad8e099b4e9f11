"""`python -m tests.machines`: see the package."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.machines import disk
from tests.machines.machine import NoMachine, machine

EMULATED = 6
"""TEST_STRETCH of a machine whose processor is emulated."""
NEEDED = {
    "qemu-system-x86_64": "qemu-system-x86",
    "debootstrap": "debootstrap",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
}


def main() -> int:
    """The exit code of the tests; 2 where there can be no machine."""
    asked = _asked()
    fault = _missing()
    if fault:
        print(fault, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever ends this leaves nothing behind
    with ExitStack() as stack:
        folder = _folder(asked.keep, asked.suite, stack)
        if not (folder / "disk.ext4").exists():
            disk.make(folder, asked.suite)
        disk.say("starting it …")
        try:
            found = stack.enter_context(machine(folder))
        except NoMachine as error:
            print(f"The machine does not start; the end of its console:\n{error}", file=sys.stderr)
            return 2
        stretch = 1 if found.ask("systemd-detect-virt || true") == "kvm" else EMULATED
        about = "uname -r; docker info --format '{{.ServerVersion}}, cgroup v{{.CgroupVersion}} by {{.CgroupDriver}}'"
        disk.say("; Docker ".join(found.ask(about).splitlines()) + ("" if stretch == 1 else "; no KVM: emulated, slow"))
        disk.copy_checkout(found.argv(f"tar --extract --directory {disk.CHECKOUT}"))
        command = (
            f"cd {disk.CHECKOUT} && TEST_STRETCH={stretch} timeout {asked.minutes}m .venv/bin/python -m pytest "
            f"-q -p no:cacheprovider --timeout={300 * stretch} {shlex.join(asked.tests)}"
        )
        code = found.run(command, asked.minutes * 60 + 60)
        if code == 124:
            disk.say(f"the tests were ended: they took longer than {asked.minutes} minutes (--minutes)")
        return code


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.machines", description="Run tests in a virtual machine.",
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--suite", default="trixie", help="of Debian: trixie (Docker 26), bookworm (Docker 20.10)")
    parser.add_argument("--keep", type=Path, help="a folder in which the disk is kept, and found by the next run")
    parser.add_argument("--minutes", type=int, default=60, help="how long the tests may take")
    asked, asked.tests = parser.parse_known_args()
    if not asked.tests:
        parser.error("name tests, as to pytest")
    return asked


def _missing() -> str:
    """Why there can be no machine here; empty where there can."""
    if os.geteuid() != 0:
        return "A machine is made by root (debootstrap, chroot)."
    if platform.machine() != "x86_64":
        return f"Machines of {platform.machine()} are not made yet: x86_64 only."
    absent = sorted(package for program, package in NEEDED.items() if shutil.which(program) is None)
    return f"apt install {' '.join(absent)}" if absent else ""


def _folder(keep: Path | None, suite: str, stack: ExitStack) -> Path:
    if keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="machine-")))
    folder = keep / disk.identity(suite, (disk.ROOT / "requirements-dev.lock").read_bytes())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(folder / "tree", ignore_errors=True)  # of one that was ended while it was made
    return folder


if __name__ == "__main__":
    sys.exit(main())
