"""What a visitor's connection is doing: plain numbers, since an enum's members cost more to read than all else here."""

from __future__ import annotations

READ, WAIT, BODY, ANSWER, TUNNEL, STREAM, LINGER, CLOSED = range(8)
"""READ: between requests. WAIT: for an app, held or connecting. BODY: the request's body passes. ANSWER: the app's
turn. TUNNEL: a WebSocket. STREAM: an endless answer of the gateway's own. LINGER: closed on our side. CLOSED: over."""
