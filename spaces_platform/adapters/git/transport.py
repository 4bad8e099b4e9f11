"""Speaks git's smart HTTP bodies: advertisement, fetch, and push with a held-back report.

It owns the async life of `git upload-pack` and `git receive-pack`; HTTP, users and databases are elsewhere.
Invariant: a client reads `ok` for a ref only after the objects and the ref are on disk and `on_pushed` has returned.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from spaces_platform.adapters.git.durable import sync_push
from spaces_platform.adapters.git.hook import HookLine
from spaces_platform.adapters.git.pktline import (
    FLUSH,
    PushRequest,
    PushRequestReader,
    ReportHold,
    packet,
    refusal,
    remote_lines,
)
from spaces_platform.adapters.git.process import CHUNK, GitAt, end_group
from spaces_platform.adapters.git.push_check import Advise
from spaces_platform.adapters.git.push_rules import human, ref_problem, unpack_refusal
from spaces_platform.adapters.git.repo import GitRepo
from spaces_platform.errors import Invalid, TooLarge, Unavailable
from spaces_platform.ports import RefUpdate

log = logging.getLogger(__name__)

SERVICES = ("git-upload-pack", "git-receive-pack")
OnPushed = Callable[[Sequence[RefUpdate]], Awaitable[Sequence[str]]]
_PROTOCOL = re.compile(r"version=[12]")
_STDERR_KEPT = 4096
_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """What all transfers together, and each of them, may take."""

    at_once: int = 24
    wait: float = 10.0
    """Seconds a transfer waits for its turn before it is sent away."""
    idle: float = 120.0
    """Seconds without a byte either way."""
    total: float = 3600.0
    """Seconds for one transfer."""
    fetch_bytes: int = 32 << 20
    """Bytes of a fetch's request."""


@dataclass
class Transport:
    """Serves repositories within limits."""

    limits: TransferLimits = field(default_factory=TransferLimits)
    _turns: asyncio.Semaphore | None = None

    async def advertise(self, repo: GitRepo, service: str, protocol: str) -> AsyncIterator[bytes]:
        """Body of `GET info/refs?service=…` (format: `git help http-protocol`, smart server response)."""
        name = _name(service)
        env = _protocol_env(service, protocol)
        async with self._turn(), _running(repo.at, [name, "--stateless-rpc", "--advertise-refs"], env) as child:
            if not env.get("GIT_PROTOCOL", "").startswith("version=2"):
                yield packet(f"# service={service}\n".encode()) + FLUSH
            _stdin(child).close()
            async for chunk in self._output(child, _Idle(self.limits)):
                yield chunk
            await _ended(child, name)

    async def serve(
        self,
        repo: GitRepo,
        service: str,
        protocol: str,
        body: AsyncIterator[bytes],
        *,
        on_pushed: OnPushed | None = None,
        advise: Advise | None = None,
    ) -> AsyncIterator[bytes]:
        """Body of the answer to one `POST git-upload-pack` / `git-receive-pack`, streamed while `body` is read.

        After a push `on_pushed` is awaited with the refs that moved, before the client is told; the lines it returns
        are shown to the client. Where it raises, the client sees a failure, and the exception comes through.
        Raises Invalid, TooLarge, Unavailable. Closing the iterator ends git and all it started.
        """
        _name(service)
        async with self._turn():
            if service == "git-upload-pack":
                parts = self._fetch(repo, _protocol_env(service, protocol), body)
            else:
                parts = self._push(repo, body, on_pushed, advise)
            async with _closing(parts):
                async for chunk in parts:
                    yield chunk

    async def _fetch(self, repo: GitRepo, env: Mapping[str, str], body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        idle = _Idle(self.limits)
        async with _running(repo.at, ["upload-pack", "--stateless-rpc"], env) as child:
            async with _feeding(child, _counted(body, self.limits.fetch_bytes, idle)) as fed:
                async for chunk in self._output(child, idle, fed):
                    yield chunk
                await fed
            await _ended(child, "upload-pack", answered=True)

    async def _push(
        self, repo: GitRepo, body: AsyncIterator[bytes], on_pushed: OnPushed | None, advise: Advise | None
    ) -> AsyncIterator[bytes]:
        idle = _Idle(self.limits)
        most = repo.limits.pack_bytes + (1 << 20)
        body = _counted(body, most, idle)
        reader = PushRequestReader(2 * repo.limits.refs)
        try:
            request = await _request(reader, body)
        except TooLarge as error:
            await _drain(body)
            yield refusal(PushRequest((), reader.capabilities), error.message)
            return
        if not request.updates:
            return
        if not request.capabilities & {"report-status", "report-status-v2"}:
            raise Invalid("This git client cannot be told whether its push succeeded; use a newer one.")
        hold = ReportHold(request.sideband)
        async for chunk in self._receive(repo, reader, body, hold, advise, idle):
            yield chunk
        moved, why = _outcome(request, hold, repo)
        lines = list(why)
        if moved:
            await asyncio.to_thread(sync_push, repo.path, [update.ref for update in moved])
            if on_pushed is not None:
                try:
                    lines += await on_pushed(moved)
                except Exception:
                    if request.sideband:
                        yield remote_lines([_NOT_RECORDED], 3)
                    raise
        if lines and request.sideband:
            yield remote_lines(lines)
        yield hold.release()

    async def _receive(
        self,
        repo: GitRepo,
        reader: PushRequestReader,
        body: AsyncIterator[bytes],
        hold: ReportHold,
        advise: Advise | None,
        idle: _Idle,
    ) -> AsyncIterator[bytes]:
        """Run receive-pack to its end; what may be shown at once is yielded, the report stays in `hold`."""
        await asyncio.to_thread(repo.drop_left_overs)
        with HookLine(repo.judge(advise)) as line:
            args = ["receive-pack", "--stateless-rpc"]
            async with _running(repo.at, args, line.env, line.child_fds, line.abort) as child:
                line.started()
                async with _feeding(child, _preceded(bytes(reader.seen), body)) as fed:
                    async for chunk in self._output(child, idle, fed):
                        now = hold.feed(chunk)
                        if now:
                            yield now
                    await fed
                await _ended(child, "receive-pack")

    async def _output(self, child: Process, idle: _Idle, fed: asyncio.Task[None] | None = None) -> AsyncIterator[bytes]:
        stdout = child.stdout
        if stdout is None:
            raise RuntimeError("git was started without a pipe for its output")
        while True:
            try:
                async with asyncio.timeout(idle.left()):
                    chunk = await stdout.read(CHUNK)
            except TimeoutError:
                if idle.left() > 0:  # bytes of the request moved meanwhile
                    continue
                raise Unavailable(f"The transfer was ended: {idle.why()}. Try again.") from None
            if fed is not None and fed.done() and (failed := fed.exception()) is not None:
                raise failed
            if not chunk:
                return
            idle.moved()
            yield chunk

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._turns is None:
            self._turns = asyncio.Semaphore(self.limits.at_once)
        try:
            async with asyncio.timeout(self.limits.wait):
                await self._turns.acquire()
        except TimeoutError:
            text = f"{self.limits.at_once} git transfers are running and none ended within {self.limits.wait:.0f} s."
            raise Unavailable(f"{text} Try again in a minute.") from None
        try:
            yield
        finally:
            self._turns.release()


_NOT_RECORDED = (
    "The push was stored, but the platform could not record it. It is picked up within minutes, or push again."
)


class _Idle:
    """Watches that bytes move and that the whole does not take for ever."""

    def __init__(self, limits: TransferLimits) -> None:
        self._limits, self._start = limits, time.monotonic()
        self._last = self._start

    def moved(self) -> None:
        self._last = time.monotonic()

    def left(self) -> float:
        now = time.monotonic()
        return max(0.0, min(self._last + self._limits.idle, self._start + self._limits.total) - now)

    def why(self) -> str:
        if time.monotonic() - self._start >= self._limits.total:
            return f"it took longer than {self._limits.total:.0f} s"
        return f"nothing moved for {self._limits.idle:.0f} s"


def _name(service: str) -> str:
    if service not in SERVICES:
        raise Invalid(f"Unknown git service {service[:40]!r}; there are {' and '.join(SERVICES)}.")
    return service.removeprefix("git-")


def _protocol_env(service: str, protocol: str) -> dict[str, str]:
    """What git is told of the client's wish. Pushing knows version 0 and 1 only."""
    wish = _PROTOCOL.search(protocol[:100])
    return {"GIT_PROTOCOL": wish[0]} if wish and service == "git-upload-pack" else {}


@asynccontextmanager
async def _running(
    at: GitAt,
    args: Sequence[str],
    env: Mapping[str, str],
    fds: Sequence[int] = (),
    abort: Callable[[], None] | None = None,
) -> AsyncIterator[Process]:
    """git on the repository, ended with its whole group when the block is left."""
    child = await asyncio.create_subprocess_exec(
        *at.git.argv(*args, str(at.path)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        cwd="/",
        env=at.git.environment(at.path, env),
        pass_fds=tuple(fds),
        start_new_session=True,
    )
    try:
        yield child
    finally:
        await asyncio.shield(_end(child, abort))


async def _end(child: Process, abort: Callable[[], None] | None) -> None:
    """End git and all it started; with `abort`, give it a moment to end by itself.

    A receive-pack that sees the end of its input, or a refusal, removes the objects it has not stored; one that is
    killed, by whatever signal, leaves them.
    """
    if child.returncode is None and abort is not None:
        _stdin(child).close()
        abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                await child.wait()
    end_group(child.pid)
    await child.wait()


@asynccontextmanager
async def _feeding(child: Process, body: AsyncIterator[bytes]) -> AsyncIterator[asyncio.Task[None]]:
    """Copies `body` to git beside the block. `_output` raises what it raises."""

    async def feed() -> None:
        stdin = _stdin(child)
        refused = False
        try:
            async for chunk in body:
                # git that ends early says why in its report; the client reads that only once its own body is taken.
                try:
                    if not refused:
                        stdin.write(chunk)
                        await stdin.drain()
                except (BrokenPipeError, ConnectionResetError):
                    refused = True
        except TooLarge:
            if not refused:
                raise
        finally:
            stdin.close()

    task = asyncio.create_task(feed())
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()


async def _ended(child: Process, name: str, *, answered: bool = False) -> None:
    """Wait for git. Raises Invalid with git's own words where it failed, unless they were part of its answer."""
    stderr = b"" if child.stderr is None else await child.stderr.read(_STDERR_KEPT)
    status = await child.wait()
    if status == 0:
        return
    text = stderr.decode("utf-8", "replace").strip()
    log.info("git %s ended with status %s: %s", name, status, text)
    if not answered:
        raise Invalid(f"git {name} failed: {text or f'status {status}'}")


def _stdin(child: Process) -> asyncio.StreamWriter:
    if child.stdin is None:
        raise RuntimeError("git was started without a pipe for its input")
    return child.stdin


@asynccontextmanager
async def _closing(parts: AsyncIterator[bytes]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        closer = getattr(parts, "aclose", None)
        if closer is not None:
            stack.push_async_callback(closer)
        yield


async def _counted(body: AsyncIterator[bytes], most: int, idle: _Idle) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in body:
        total += len(chunk)
        idle.moved()
        if total > 2 * most:
            raise TooLarge(f"The request is larger than {human(most)}.")
        yield chunk


async def _preceded(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


async def _request(reader: PushRequestReader, body: AsyncIterator[bytes]) -> PushRequest:
    async for chunk in body:
        request = reader.feed(chunk)
        if request is not None:
            return request
    raise Invalid("The push is not readable: it ends within its list of refs.")


async def _drain(body: AsyncIterator[bytes]) -> None:
    """Take the rest of a refused body, so that the client comes to read the answer."""
    async for _ in body:
        pass


def _outcome(request: PushRequest, hold: ReportHold, repo: GitRepo) -> tuple[list[RefUpdate], list[str]]:
    """The refs that moved, and lines for the client about what git alone refused."""
    unpack, refs = hold.results()
    moved = [u for u in request.updates if u.ref in refs and refs[u.ref] is None and u.old != u.new]
    lines = [] if unpack == "ok" else unpack_refusal(hold.said.decode("utf-8", "replace"), unpack, repo.limits)
    for update in request.updates:
        problem = ref_problem(update.ref, repo.limits) if refs.get(update.ref) else None
        if problem is not None:
            lines += [f"  * {problem.text}", f"    Fix: {problem.fix}"]
    return moved, lines
