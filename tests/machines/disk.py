"""The disk of a test machine: Debian with Docker, this checkout's dependencies and the images that the host has.

Owns: what is on it. Does not own: starting it (`machine`). Invariant: mounts that making it needs are in a namespace of
their own, so that none is left however it ends. The folder has the machine's key and the settings of pip and uv, which
may hold a login of the package index: it is the user's own.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import runtime_images
from runtime_images.base import MIRROR
from runtime_images.network import PASSED
from tests.services.engine import BASE, IMAGE, pip_index

ROOT = Path(__file__).resolve().parents[2]
GIB = 20
"""Of the disk; it takes of the host's what is written."""
SECONDS = 1800.0
CA = "/etc/ssl/certs/ca-certificates.crt"
CHECKOUT = "/srv/spaces"
_PACKAGES = (
    "systemd-sysv dbus dbus-user-session libpam-systemd udev kmod procps linux-image-cloud-amd64 initramfs-tools "
    "openssh-server ca-certificates iproute2 iptables e2fsprogs mount apparmor sudo docker.io debootstrap redis-server "
    "bubblewrap git make curl strace python3 python3-venv"
)
_APART = ("docker-cli", "docker-buildx")
"""Of docker.io itself until bookworm."""
_NETWORK = "[Match]\nName=e*\n[Network]\nDHCP=ipv4\n"
_RESOLVER = "nameserver 10.0.2.3\n"
"""Qemu's, which asks the host's."""
_MASKED = "apt-daily.timer apt-daily-upgrade.timer systemd-networkd-wait-online.service redis-server.service"
_LOAD = """
unset DOCKER_HOST DOCKER_CONTEXT  # the host's
dockerd --bridge=none --iptables=false --ip6tables=false >/tmp/dockerd.log 2>&1 &
for _ in $(seq 120); do docker version >/dev/null 2>&1 && break; sleep 0.5; done
docker load --quiet; code=$?
kill $!; wait $!
[ $code = 0 ] || cat /tmp/dockerd.log >&2
exit $code
"""


def packages(suite: str) -> list[str]:
    """What a machine of a suite has beside Debian's essential packages. Pure."""
    return [*_PACKAGES.split(), *(() if suite == "bookworm" else _APART)]


def identity(suite: str, lock: bytes) -> str:
    """The name of a disk: another one where another would be made. Pure."""
    parts = [suite.encode(), *(name.encode() for name in packages(suite)), lock]
    return f"{suite}-{hashlib.sha256(b' '.join(parts)).hexdigest()[:12]}"


def settings(environ: Mapping[str, str], index: str) -> dict[str, str]:
    """How pip and uv of the machine find packages: as those of the host. `index`: that of pip's configuration. Pure."""
    found = {name: environ[name] for name in PASSED if environ.get(name)}
    if index:
        found.setdefault("PIP_INDEX_URL", index)
        found.setdefault("UV_DEFAULT_INDEX", index)
    return {**found, "SSL_CERT_FILE": CA, "PIP_CERT": CA}


def make(folder: Path, suite: str) -> None:
    """Put `disk.ext4`, `kernel`, `initrd` and `key` into a folder. Needs root. Raises CalledProcessError."""
    tree = folder / "tree"
    mirror = os.environ.get("TEST_MACHINE_MIRROR", MIRROR)
    say(f"making Debian {suite} by debootstrap …")
    include = f"--include={','.join(packages(suite))}"
    call(["debootstrap", "--variant=minbase", include, suite, str(tree), mirror], quiet=True)
    environ = settings(os.environ, pip_index())
    _configure(tree, folder / "key", environ)
    say("installing what the tests need …")
    copy_checkout(["tar", "--extract", "--directory", f"{tree}{CHECKOUT}"])
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in {**environ, "HOME": "/root"}.items())
    inside(tree, f"env {words} make -C {CHECKOUT} PYTHON=python3 test ARGS=--version")
    _load_images(tree)
    for name, pattern in (("kernel", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        shutil.copyfile(next((tree / "boot").glob(pattern)), folder / name)
    (tree / "etc/resolv.conf").write_text(_RESOLVER)
    call(["truncate", "--size", f"{GIB}G", str(folder / "disk.new")])
    call(["mkfs.ext4", "-q", "-d", str(tree), str(folder / "disk.new")])
    (folder / "disk.new").rename(folder / "disk.ext4")
    shutil.rmtree(tree)


def _configure(tree: Path, key: Path, environ: Mapping[str, str]) -> None:
    key.unlink(missing_ok=True)
    call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    ssh = tree / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(key.with_suffix(".pub"), ssh / "authorized_keys")
    shutil.copyfile("/etc/resolv.conf", tree / "etc/resolv.conf")
    (tree / "etc/hostname").write_text("machine\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost machine\n::1 localhost\n")
    (tree / "etc/fstab").write_text("/dev/vda / ext4 rw,noatime 0 1\n")
    (tree / "etc/systemd/network/10-qemu.network").write_text(_NETWORK)
    (tree / "etc/environment").write_text("".join(f"{name}={value}\n" for name, value in environ.items()))
    (tree / "etc/environment").chmod(0o600)
    authorities = Path(os.environ.get("SSL_CERT_FILE") or CA)
    if authorities.is_file():
        shutil.copyfile(authorities, f"{tree}{CA}")
    inside(tree, f"systemctl enable --quiet systemd-networkd; systemctl mask --quiet {_MASKED}")
    Path(f"{tree}{CHECKOUT}").mkdir(parents=True)


def copy_checkout(receiver: list[str]) -> None:
    """Hand the working tree, without what git ignores, as a tar to a command."""
    listed = call(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
    there = b"\0".join(name for name in listed.split(b"\0") if name and os.path.lexists(ROOT / os.fsdecode(name)))
    pack = ["tar", "--create", "--null", "--files-from=-", "--file=-"]
    packed = subprocess.run(pack, cwd=ROOT, input=there, stdout=subprocess.PIPE, check=True, timeout=SECONDS).stdout
    subprocess.run(receiver, input=packed, check=True, timeout=SECONDS)


def _load_images(tree: Path) -> None:
    """Give its engine the images that the host's has; what is missing, the tests make there, which takes long."""
    catalogue = runtime_images.load()
    names = [BASE, IMAGE, *(runtime_images.image_ref(catalogue, n) for n in catalogue.images)]
    docker = shutil.which("docker")
    there = [
        n
        for n in names
        if docker and subprocess.run([docker, "image", "inspect", n], capture_output=True).returncode == 0
    ]
    if docker is None or not there:
        say("the host's engine has no images: the tests will make them in the machine")
        return
    say(f"copying {len(there)} images …")
    with subprocess.Popen([docker, "save", *there], stdout=subprocess.PIPE) as saved:
        inside(tree, _LOAD, stdin=saved.stdout)


def inside(tree: Path, script: str, stdin: object = subprocess.DEVNULL) -> None:
    """Run a script of a shell in the tree, with the host's /proc, /sys and /dev."""
    at = shlex.quote(str(tree))
    mounts = (
        f"mount --bind {at} {at} && mount -t proc proc {at}/proc && mount --rbind /sys {at}/sys && "
        f"mount --rbind /dev {at}/dev && mount -t tmpfs tmpfs {at}/run && mount -t tmpfs tmpfs {at}/tmp"
    )
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
            f'{mounts} && exec chroot {at} sh -c "$1"', "sh", script]  # fmt: skip
    subprocess.run(argv, stdin=stdin, stdout=sys.stderr, check=True, timeout=SECONDS)  # type: ignore[call-overload]


def call(argv: list[str], *, quiet: bool = False, cwd: Path | None = None) -> bytes:
    """Standard output of a command; shown in full where a quiet one failed. Raises CalledProcessError."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if quiet else None, cwd=cwd,
                          timeout=SECONDS, check=False)  # fmt: skip
    if done.returncode and quiet:
        sys.stderr.write(done.stdout.decode(errors="replace")[-3000:])
    done.check_returncode()
    return done.stdout


def say(words: str) -> None:
    print(f"machine: {words}", file=sys.stderr, flush=True)
