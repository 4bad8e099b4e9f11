"""What Celery's Redis transport lacks to live through outages and nonsense (seen with celery 5.7, kombu 5.7).

- A message whose acknowledgement fails keeps its place of the prefetch for ever. Once all places are gone nothing is
  read from Redis, so the lost connection is never noticed and the worker hangs. Here the place is free again; the next
  read fails or finds the server back, and the message is at worst given again, which costs nothing.
- A Redis that is full refuses such an acknowledgement, and the record of a message that was just read. Either ended the
  whole worker. Here it is logged: the message is at worst given again, or not at all; the row decides.
- A list item that is no message ends the whole worker. Here it is logged and dropped.
- Reconnecting is tried less and less often, up to every 30 s. Here the most is RECONNECT_SECONDS.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown
from kombu.transport import redis, virtual
from redis.exceptions import ResponseError

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 5.0


class _QoS(redis.QoS):
    def append(self, message: Any, delivery_tag: str) -> None:
        try:
            super().append(message, delivery_tag)
        except ResponseError as exc:
            log.warning("Redis keeps no record of a message that is worked on: %s", exc)
            virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        except Exception as exc:
            virtual.QoS.ack(self, delivery_tag)
            self._pass_on(exc)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue)
        except Exception as exc:
            virtual.QoS.ack(self, delivery_tag)
            self._pass_on(exc)

    def _pass_on(self, exc: Exception) -> None:
        """A refusal is no lost connection; the rest is for Celery to see."""
        if not isinstance(exc, ResponseError):
            raise exc
        log.warning("Redis refused the acknowledgement of a message: %s", exc)


class _Channel(redis.Channel):
    QoS = _QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, KeyError, TypeError, AttributeError):
            log.exception("something that is no message was in a queue; it is dropped")
            return True


class Transport(redis.Transport):
    """The broker transport: `broker_transport` of the Celery configuration."""

    Channel = _Channel


class Consumer(CeleryConsumer):
    """The worker's consumer: `worker_consumer` of the Celery configuration."""

    def ensure_connected(self, conn: Any) -> Any:
        """Connected, however long it takes; gives up only when the worker stops."""

        def failed(exc: Exception, seconds: float) -> None:
            log.warning("no connection to Redis, tried again in %.0f s: %s", seconds, exc)

        conn = conn.ensure_connection(
            failed, interval_start=1, interval_step=1, interval_max=RECONNECT_SECONDS, callback=maybe_shutdown
        )
        self.first_connection_attempt = False
        return conn
