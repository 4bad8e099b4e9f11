"""Who is asking, and what a Space without an endpoint answers them: pure decisions, tested as tables.

Owns: telling people, programs, robots and reconnecting tabs apart; the choice between holding, showing and refusing.
Does not own: carrying it out (dispatch.py, waiting.py).

Rules: a person opening the app (a GET that asks for HTML) wakes it and sees a page; a program wakes it and is held.
Robots, link previewers, uptime probes and every HEAD get a card, status 200 while the app could come (a monitor must
not take a sleeping app for a broken one), and never wake. What an open tab sends by itself (heartbeats, reconnects)
never wakes and gets 503: the tab keeps trying, and a sleeping app stays asleep however many tabs were left open.
"""

from __future__ import annotations

import re
from enum import Enum

from spaces_platform.gateway.grammar import Request
from spaces_platform.gateway.routes import RouteEntry


class Visitor(Enum):
    PERSON = "person"
    PROGRAM = "program"
    ROBOT = "robot"
    TAB = "tab"


class Reply(Enum):
    HOLD = "hold"
    """Wake it, and hold the request until it answers."""
    PAGE = "page"
    """A page with live progress; wakes where the Space may be woken."""
    CARD = "card"
    """A small page about the Space; wakes nothing."""
    REFUSE = "refuse"
    """503 at once."""


_ROBOT = re.compile(
    rb"bot\b|bot[/_-]|crawl|spider|slurp|facebookexternalhit|facebookcatalog|embedly|quora link preview|outbrain|"
    rb"pinterest|vkshare|w3c_validator|whatsapp|telegram|skypeuripreview|discord|slack-imgproxy|iframely|preview|mediapartners|lighthouse|"
    rb"uptime|pingdom|statuscake|site24x7|newrelicpinger|datadog/synthetics|nagios|check_http|zabbix|blackbox|prometheus|"
    rb"kube-probe|googlehc|elb-healthchecker|monitor|probe|healthcheck|health-check|feedfetcher|archive\.org",
    re.IGNORECASE,
)
_TAB_PREFIXES = (
    b"/gradio_api/heartbeat/",
    b"/heartbeat/",
    b"/_stcore/stream",
    b"/_stcore/health",
    b"/_stcore/host-config",
)
_HEARTBEATS = (b"/gradio_api/heartbeat/", b"/heartbeat/")


def is_heartbeat(target: bytes) -> bool:
    """True for the event stream by which an open Gradio tab shows that it is there (gradio/routes.py `/heartbeat`)."""
    return target.startswith(_HEARTBEATS)


def visitor(request: Request) -> Visitor:
    """Who sent this request."""
    if _ROBOT.search(request.field(b"user-agent")) or request.method == b"HEAD":
        return Visitor.ROBOT
    if request.target.startswith(_TAB_PREFIXES):
        return Visitor.TAB
    if request.method == b"GET" and not request.websocket and b"text/html" in request.field(b"accept").lower():
        return Visitor.PERSON
    return Visitor.PROGRAM


def reply(entry: RouteEntry, who: Visitor) -> Reply:
    """What a Space without an endpoint answers."""
    if who is Visitor.ROBOT:
        return Reply.CARD
    if who is Visitor.PERSON:
        return Reply.PAGE
    if who is Visitor.TAB or not entry.may_answer:
        return Reply.REFUSE
    return Reply.HOLD
