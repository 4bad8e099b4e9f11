"""The real Caddy with the configuration that is shipped, before a real gateway that tests give routes."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.edge.servers import free_port, program
from tests.gateway.harness import App, Handler, Platform, platform, until

CADDYFILE = Path(__file__).parents[2] / "runtime_images" / "platform" / "caddy" / "Caddyfile"
PLATFORM, APP, CUSTOM = "spaces.example.org", "alice-app.apps.example.org", "shop.example.com"


@dataclass(kw_only=True)
class Caddy:
    """A real Caddy, with clients that trust one authority and nothing else."""

    folder: Path
    """Its data and log; they outlive a restart."""
    port: int
    """Of TLS."""
    root: Path
    """Certificate of the authority that clients trust."""
    env: dict[str, str] = field(repr=False)
    config: Path = CADDYFILE
    process: asyncio.subprocess.Process | None = None

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.root))

    @property
    def log(self) -> str:
        return (self.folder / "caddy.log").read_text(errors="replace")

    async def start(self) -> None:
        """Start it, and wait until it listens and what clients are to trust is there."""
        argv = [program("caddy", "caddy"), "run", "--config", str(self.config), "--adapter", "caddyfile"]
        with (self.folder / "caddy.log").open("ab") as log:
            self.process = started = await asyncio.create_subprocess_exec(*argv, env=self.env, stdout=log, stderr=log)
        await until(lambda: self._is_up() or started.returncode is not None, 60, "Caddy to come up")
        assert started.returncode is None, self.log[-2000:]

    async def stop(self) -> None:
        if self.process is not None:
            if self.process.returncode is None:
                self.process.terminate()
            await self.process.wait()

    def _is_up(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=0.2).close()
        except OSError:
            return False
        return self.root.exists()


@dataclass(kw_only=True)
class Front(Caddy):
    """With the configuration that is shipped."""

    plain: int
    """Port without TLS."""

    async def curl(self, host: str, path: str = "/", *options: str, plain: bool = False) -> tuple[int, str]:
        """Exit code and output of curl; names are resolved to this machine, nothing leaves it."""
        scheme, port = ("http", self.plain) if plain else ("https", self.port)
        argv = ["--silent", "--show-error", "--max-time", "60", "--noproxy", "*", "--cacert", str(self.root)]
        argv += ["--resolve", f"{host}:{port}:127.0.0.1", *options, f"{scheme}://{host}:{port}{path}"]
        process = await asyncio.create_subprocess_exec(
            program("curl", "curl"), *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode("utf-8", "replace")


@dataclass(kw_only=True)
class Edge(Front):
    """A gateway behind it, in this process."""

    platform: Platform

    async def routed(self, handler: Handler | None = None) -> App:
        """An app at APP and CUSTOM."""
        return await self.platform.app(1, handler, hosts=[APP, CUSTOM])


def places(folder: Path) -> dict[str, str]:
    """Environment of a Caddy whose files are in `folder`. Pure."""
    return {
        "PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CONFIG_HOME": str(folder / "config"),
    }  # fmt: skip


def told(folder: Path, mode: str, *, gateway: int, ask: int, port: int, plain: int, **more: str) -> dict[str, str]:
    """The same, and what the shipped configuration takes from it, with a gateway on this machine. Pure."""
    return {
        **places(folder), "SPACES_TLS": mode, "SPACES_TLS_ASK": f"127.0.0.1:{ask}",
        "SPACES_GATEWAY": f"127.0.0.1:{gateway}", "SPACES_HTTP_PORT": str(plain), "SPACES_HTTPS_PORT": str(port),
        **more,
    }  # fmt: skip


@asynccontextmanager
async def edge(
    folder: Path, mode: str = "internal", *, port: int = 0, plain: int = 0, root: Path | None = None, **environment: str
) -> AsyncIterator[Edge]:
    """Caddy in one mode of TLS, on free ports unless told which. Clients trust `root`, or else Caddy's own authority,
    which only `internal` has.
    """
    ask, plain, port = free_port(), plain or free_port(), port or free_port()
    async with platform(
        tls_ask=f"127.0.0.1:{ask}",
        platform_hosts=[PLATFORM],
        platform_origin=f"https://{PLATFORM}",
        apps_domain="apps.example.org",
        trusted_proxies=["127.0.0.1/32"],
    ) as found:
        env = told(folder, mode, gateway=found.port, ask=ask, port=port, plain=plain, **environment)
        root = root or folder / "data/caddy/pki/authorities/local/root.crt"
        made = Edge(platform=found, folder=folder, port=port, plain=plain, root=root, env=env)
        try:
            await made.start()
            yield made
        finally:
            await made.stop()
