"""Hints from worker processes to the control process, by Redis pub/sub: small words of a kind and what it is about.

Nobody waits for Redis and nothing fails with it: a word that is lost costs latency, which the sweep bounds.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from spaces_platform.adapters.outbox import Outbox

log = logging.getLogger(__name__)

SOCKET_SECONDS = 2.0
RECONNECT_SECONDS = 0.5
HEALTH_SECONDS = 10
"""A connection that is silent for so long is asked whether it lives; a half-open one is given up after twice that."""
SPACING_SECONDS = 0.02
LOOK_SECONDS = 0.5
"""How soon a listener notices that it is closed."""

Word = tuple[str, int | str]


class RedisHints:
    """One channel. Tells from any process; hears, where `listen` was called, in a thread of its own."""

    def __init__(self, url: str, channel: str) -> None:
        self._url, self.channel = url, channel
        self._outbox: Outbox[Word] = Outbox("hints by Redis", self._publish, spacing=SPACING_SECONDS)
        self._client: redis.Redis | None = None
        self._handlers: dict[str, Callable[[int], None] | Callable[[str], None]] = {}
        self._closed = threading.Event()
        self.listening = threading.Event()
        """Set while the channel is subscribed to."""
        self._listener: threading.Thread | None = None

    def tell(self, kind: str, about: int | str) -> None:
        """Say it to whoever listens. Never waits, never raises."""
        self._outbox.say((kind, about))

    def on_id(self, kind: str, heard: Callable[[int], None]) -> None:
        """Words of this kind are about an id; `heard` is called with it."""
        self._handlers[kind] = lambda about: heard(about) if isinstance(about, int) else None

    def on_name(self, kind: str, heard: Callable[[str], None]) -> None:
        """Words of this kind are about a name; `heard` is called with it."""
        self._handlers[kind] = lambda about: heard(about) if isinstance(about, str) else None

    def listen(self) -> None:
        """Begin to hear, and go on through every loss of the connection until `close`."""
        self._listener = threading.Thread(target=self._listen, name="hints from Redis", daemon=True)
        self._listener.start()

    def close(self) -> None:
        """Say what waits, within a second, and stop hearing."""
        self._closed.set()
        self._outbox.close()
        if self._listener is not None:
            self._listener.join(2 * SOCKET_SECONDS)

    def _connect(self) -> redis.Redis:
        # One retry: a connection that the server closed meanwhile is noticed only by using it.
        return redis.Redis.from_url(
            self._url, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS,
            health_check_interval=HEALTH_SECONDS, retry=Retry(NoBackoff(), 1),
        )  # fmt: skip

    def _publish(self, words: Sequence[Word]) -> None:
        self._client = self._client or self._connect()
        pipe = self._client.pipeline(transaction=False)
        for word in words:
            pipe.publish(self.channel, json.dumps(word))
        pipe.execute()

    def _listen(self) -> None:
        failing = False
        while not self._closed.is_set():
            try:
                with self._connect() as client, client.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(self.channel)
                    if failing:
                        log.info("hints from Redis are heard again")
                    failing = False
                    self.listening.set()
                    while not self._closed.is_set():
                        message = channel.get_message(timeout=LOOK_SECONDS)
                        if message is not None:
                            self._hear(message["data"])
            except (redis.RedisError, OSError) as exc:
                if not failing:
                    log.warning("no hints from workers until Redis answers again; the sweep finds their work: %s", exc)
                failing = True
            finally:
                self.listening.clear()
            self._closed.wait(RECONNECT_SECONDS)

    def _hear(self, data: bytes) -> None:
        try:
            kind, about = json.loads(data)
            handler = self._handlers[kind]
        except (ValueError, TypeError, KeyError):
            log.debug("a word that means nothing on %s is ignored", self.channel)
            return
        handler(about)
