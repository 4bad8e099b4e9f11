"""A test machine from its start to its end. Owns: the qemu process and what is said to it by ssh.

Invariant: the disk is not changed (what is written goes to a file that is deleted already), the machine is reached from
this host alone, and it does not outlive this process.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 600.0
"""How long it may take to answer where everything is emulated."""
MEMORY_MIB = 6144
NICE = 15


class NoMachine(Exception):
    """It does not start; the text has the end of its console."""


def accelerators(cpuinfo: str, *, has_device: bool) -> tuple[str, ...]:
    """What qemu is to try, in this order. Pure.

    /dev/kvm alone says too little: some hosts have one that gives up on a guest's first newer instruction.
    """
    has_flag = any({"vmx", "svm"} & set(line.split()) for line in cpuinfo.splitlines() if line.startswith("flags"))
    return (*(("kvm",) if has_flag and has_device else ()), "tcg,thread=multi")


def qemu_argv(folder: Path, port: int, processors: int, tried: tuple[str, ...]) -> list[str]:
    """The command line. Pure."""
    return [
        "qemu-system-x86_64", *(word for name in tried for word in ("-accel", name)), "-cpu", "max",
        "-smp", str(processors), "-m", str(MEMORY_MIB), "-display", "none", "-no-reboot", "-monitor", "none",
        "-kernel", f"{folder}/kernel", "-initrd", f"{folder}/initrd",
        "-append", "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 systemd.unified_cgroup_hierarchy=1",
        "-drive", f"file={folder}/disk.ext4,format=raw,if=virtio,snapshot=on",
        "-nic", f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "virtio-rng-pci", "-serial", "stdio",
    ]  # fmt: skip


class Machine:
    """One that runs and answers."""

    def __init__(self, folder: Path, port: int) -> None:
        self._ssh = [
            "ssh", "-q", "-i", f"{folder}/key", "-p", str(port), "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=20", "-o", "BatchMode=yes", "root@127.0.0.1",
        ]  # fmt: skip

    def argv(self, command: str) -> list[str]:
        """What runs a command of a shell there."""
        return [*self._ssh, command]

    def ask(self, command: str) -> str:
        """Its output. Raises CalledProcessError, TimeoutExpired."""
        done = subprocess.run(self.argv(command), capture_output=True, text=True, check=True, timeout=300)
        return done.stdout.strip()

    def run(self, command: str, seconds: float) -> int:
        """Its exit code, with its output shown as it comes; 124 where it took too long."""
        try:
            return subprocess.run(self.argv(command), timeout=seconds, check=False).returncode
        except subprocess.TimeoutExpired:
            return 124


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """A machine from `disk.ext4` and what lies beside it. Raises NoMachine."""
    port = _free_port()
    guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    console = folder / "console.log"
    tried = accelerators(Path("/proc/cpuinfo").read_text(), has_device=os.access("/dev/kvm", os.R_OK | os.W_OK))
    argv = [*guard, "nice", "-n", str(NICE), *qemu_argv(folder, port, min(os.cpu_count() or 1, 8), tried)]
    with console.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    try:
        found = Machine(folder, port)
        _wait(found, process, console)
        yield found
    finally:
        process.kill()
        process.wait(60)


def _wait(found: Machine, process: subprocess.Popen[bytes], console: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    # Services too: Docker is one, and tests that found it half started would start one of their own.
    while subprocess.run(found.argv("systemctl is-system-running --wait"), capture_output=True).returncode == 255:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoMachine(console.read_text(errors="replace")[-2000:])
        time.sleep(1)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
