"""Custom domains: which names may be added, whose they are, and where they lead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.rcode
import pytest
from fastapi.testclient import TestClient
from sqlmodel import select

from spaces_platform.adapters.dns import DnsTxt
from spaces_platform.api.app import create_app
from spaces_platform.domains import MAX_DOMAINS, Domains, challenge
from spaces_platform.errors import Conflict, Forbidden, Invalid, NotFound, TooMany, Unavailable
from spaces_platform.models import Domain, Event, Host, Space
from spaces_platform.names import check_domain, shown_domain
from tests.api.conftest import Caller, World, add_people, make_world
from tests.edge.dns_server import NameServer, name_server

RESERVED = ("spaces.example.org", "apps.example.org")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("app.example.com", "app.example.com"),
        (" App.Example.COM. ", "app.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("日本語。example", "xn--wgv71a119e.example"),
        ("example.org", "example.org"),
        ("notapps.example.org", "notapps.example.org"),
        ("1.example.com", "1.example.com"),
    ],
)
def test_domains_are_taken_in_one_form(text: str, name: str) -> None:
    assert check_domain(text, RESERVED) == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("*.example.com", "wildcard"),
        ("app.*.com", "wildcard"),
        ("localhost", "not a domain name"),
        ("app.localhost", "belongs to the platform"),
        ("spaces.example.org", "belongs to the platform"),
        ("SPACES.example.org.", "belongs to the platform"),
        ("x.spaces.example.org", "belongs to the platform"),
        ("alice-app.apps.example.org", "belongs to the platform"),
        ("ＳＰＡＣＥＳ.example.org", "belongs to the platform"),
        ("127.0.0.1", "not a domain name"),
        ("127.1", "not a domain name"),
        ("0x7f.0x1", "not a domain name"),
        ("[::1]", "not a domain name"),
        ("example.com:443", "not a domain name"),
        ("https://example.com", "not a domain name"),
        ("example.com/path", "not a domain name"),
        ("user@example.com", "not a domain name"),
        ("-a.example.com", "not a domain name"),
        ("a..example.com", "not a domain name"),
        ("_dmarc.example.com", "not a domain name"),
        ("a b.example.com", "not a domain name"),
        ("a\r\nHost: x.example.com", "not a domain name"),
        ("a" * 64 + ".example.com", "not a domain name"),
        (".".join(["a" * 60] * 4) + ".com", "not a domain name"),
        ("", "not a domain name"),
        (".", "not a domain name"),
        ("xn--0.example", "not a domain name"),
    ],
)
def test_domains_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        check_domain(text, RESERVED)


def test_domains_are_shown_as_people_write_them() -> None:
    assert shown_domain("xn--bcher-kva.example") == "bücher.example"
    assert shown_domain("app.example.com") == "app.example.com"


# --- a real name server -------------------------------------------------------------------------
@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def test_text_records_are_read_whole(names: NameServer) -> None:
    names.records["_spaces.a.example"] = ["one", "two |halves"]
    assert DnsTxt(names.address).txt("_spaces.a.example") == {"one", "two halves"}


def test_no_name_and_no_record_are_no_records(names: NameServer) -> None:
    names.records["here.example"] = []
    assert DnsTxt(names.address).txt("gone.example") == frozenset()
    assert DnsTxt(names.address).txt("here.example") == frozenset()


def test_a_server_that_cannot_tell_is_not_taken_for_no(names: NameServer) -> None:
    names.rcode = dns.rcode.SERVFAIL
    with pytest.raises(Unavailable, match=r"does not answer for a\.example"):
        DnsTxt(names.address).txt("a.example")


@pytest.mark.parametrize("servers", ["nonsense", "10.0.0.53,example.org", "10.0.0.999"])
def test_name_servers_are_addresses(servers: str) -> None:
    with pytest.raises(Invalid, match="address of a name server"):
        DnsTxt(servers)


# --- use cases ----------------------------------------------------------------------------------
@dataclass
class Hand:
    """A clock that tests move."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def now(self) -> datetime:
        return self.at

    def go(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass
class Place:
    world: World
    names: NameServer
    clock: Hand
    domains: Domains

    def prove(self, domain: Domain) -> None:
        self.names.records.setdefault(challenge(domain.name), []).append(domain.token)

    def hosts(self, space: Space) -> list[str]:
        (entry,) = self.world.routes.of([space.id or 0])
        return list(entry["hosts"])

    def row(self, name: str) -> Host | None:
        with self.world.store.read() as db:
            return db.get(Host, name)


@pytest.fixture
def place(tmp_path: Path, names: NameServer) -> Iterator[Place]:
    world = make_world(
        tmp_path / "data", public_url="https://spaces.example.org", apps_domain="apps.example.org", dns=names.address
    )
    add_people(world)
    clock = Hand()
    domains = Domains(world.store, clock, world.settings, world.feed, DnsTxt(names.address))
    world.domains = domains
    yield Place(world, names, clock, domains)
    world.store.close()


def test_a_domain_leads_to_its_space_once_its_dns_says_so(place: Place) -> None:
    world, alice = place.world, place.world.actor("alice")
    space = world.space("alice/app")
    made = place.domains.add(space, alice, "Shop.Example.com")
    assert (made.name, made.verified_at) == ("shop.example.com", None)
    assert "shop.example.com" not in place.hosts(space)
    looked = place.domains.verify(space, alice, made.name)
    assert (looked.verified_at, "TXT record" in looked.problem) == (None, True)
    before = world.directory.by_id(space.id or 0).route_version
    place.prove(made)
    place.clock.go(3)
    verified = place.domains.verify(space, alice, made.name)
    assert (verified.verified_at, verified.problem) == (place.domains.now(), "")
    assert place.hosts(space) == ["alice-app.apps.example.org", "shop.example.com"]
    assert world.directory.by_id(space.id or 0).route_version > before, "gateways hear of it"
    assert world.directory.by_host("shop.example.com", alice).id == space.id


def test_a_removed_domain_ends_at_once(place: Place) -> None:
    alice, space = place.world.actor("alice"), place.world.space("alice/app")
    made = place.domains.add(space, alice, "bücher.example")
    place.prove(made)
    place.domains.verify(space, alice, "bücher.example")
    before = place.world.directory.by_id(space.id or 0).route_version
    place.domains.remove(space, alice, "BÜCHER.example")
    assert place.hosts(space) == ["alice-app.apps.example.org"]
    assert place.row("xn--bcher-kva.example") is None
    assert place.world.directory.by_id(space.id or 0).route_version > before
    with pytest.raises(NotFound):
        place.domains.remove(space, alice, "bücher.example")


def test_a_claim_without_proof_keeps_nobody_out(place: Place) -> None:
    alice, bob = place.world.actor("alice"), place.world.actor("bob")
    squatter, rightful = place.world.space("bob/squat"), place.world.space("alice/app")
    place.domains.add(squatter, bob, "example.com")
    mine = place.domains.add(rightful, alice, "example.com")
    place.prove(mine)
    assert place.domains.verify(rightful, alice, "example.com").verified_at is not None
    assert place.domains.verify(squatter, bob, "example.com").verified_at is None
    assert (place.hosts(squatter), place.hosts(rightful)[1:]) == (["bob-squat.apps.example.org"], ["example.com"])


def test_tokens_are_not_good_for_another_space(place: Place) -> None:
    alice, bob = place.world.actor("alice"), place.world.actor("bob")
    mine = place.domains.add(place.world.space("alice/app"), alice, "example.com")
    theirs = place.domains.add(place.world.space("bob/app"), bob, "example.com")
    assert mine.token != theirs.token


def test_a_domain_that_changed_hands_moves_and_two_proofs_are_a_conflict(place: Place) -> None:
    alice, bob = place.world.actor("alice"), place.world.actor("bob")
    first, second = place.world.space("alice/app"), place.world.space("bob/app")
    old, new = place.domains.add(first, alice, "example.com"), place.domains.add(second, bob, "example.com")
    place.prove(old)
    place.domains.verify(first, alice, "example.com")
    place.prove(new)
    with pytest.raises(Conflict, match="leads to another Space"):
        place.domains.verify(second, bob, "example.com")
    assert "example.com" in place.hosts(first)
    place.names.records[challenge("example.com")] = [new.token]
    place.clock.go(3)
    place.domains.verify(second, bob, "example.com")
    assert ("example.com" in place.hosts(first), "example.com" in place.hosts(second)) == (False, True)
    (lost,) = place.domains.of(first, alice)
    assert (lost.verified_at, "another Space" in lost.problem) == (None, True)
    with place.world.store.read() as db:
        kinds = [e.kind for e in db.exec(select(Event).where(Event.space_id == first.id))]
    assert "domain.lost" in kinds


def test_a_dns_that_cannot_tell_takes_nothing_away(place: Place) -> None:
    alice, space = place.world.actor("alice"), place.world.space("alice/app")
    place.prove(place.domains.add(space, alice, "example.com"))
    place.domains.verify(space, alice, "example.com")
    place.names.rcode = dns.rcode.SERVFAIL
    place.clock.go(3)
    with pytest.raises(Unavailable):
        place.domains.verify(space, alice, "example.com")
    assert "example.com" in place.hosts(space)


def test_only_who_administers_a_space_gives_it_domains(place: Place) -> None:
    space = place.world.space("alice/app")
    for call in (place.domains.add, place.domains.verify, place.domains.remove):
        with pytest.raises(Forbidden):
            call(space, place.world.actor("bob"), "example.com")
        with pytest.raises(Forbidden):
            call(space, place.world.actor("alice:read"), "example.com")
    with pytest.raises(Forbidden):
        place.domains.of(space, place.world.actor("bob"))


def test_a_space_has_a_bounded_number(place: Place) -> None:
    alice, space = place.world.actor("alice"), place.world.space("alice/app")
    for n in range(MAX_DOMAINS):
        place.domains.add(space, alice, f"d{n}.example.com")
    assert place.domains.add(space, alice, "D0.example.com").name == "d0.example.com", "the same again is success"
    with pytest.raises(Conflict, match="the most a Space may have"):
        place.domains.add(space, alice, "one-more.example.com")


def test_looking_again_at_once_is_refused(place: Place) -> None:
    alice, space = place.world.actor("alice"), place.world.space("alice/app")
    place.domains.add(space, alice, "example.com")
    place.domains.verify(space, alice, "example.com")
    with pytest.raises(TooMany):
        place.domains.verify(space, alice, "example.com")
    assert place.names.asked == ["_spaces.example.com"]


def test_pending_domains_are_looked_up_by_themselves_and_ever_less(place: Place) -> None:
    alice, space = place.world.actor("alice"), place.world.space("alice/app")
    made = place.domains.add(space, alice, "example.com")

    def looks(seconds: float) -> int:
        place.clock.go(seconds)
        before = len(place.names.asked)
        place.domains.verify_due()
        return len(place.names.asked) - before

    assert [looks(0), looks(30), looks(31)] == [1, 0, 1]
    assert [looks(86_400), looks(61), looks(3_600)] == [1, 0, 1]
    assert looks(40 * 86_400) == 0
    place.prove(made)
    assert place.domains.verify(space, alice, "example.com").verified_at is not None
    assert looks(3_600) == 0, "a verified one is left alone"


def test_one_domain_whose_dns_fails_keeps_no_other_waiting(place: Place) -> None:
    alice, space = place.world.actor("alice"), place.world.space("alice/app")
    made = [place.domains.add(space, alice, f"{n}.example.com") for n in ("a", "b")]

    class Half:
        def txt(self, name: str) -> frozenset[str]:
            if "a.example" in name:
                raise Unavailable("slow")
            return frozenset({made[1].token})

    place.domains.dns = Half()
    place.domains.verify_due()
    assert [d.verified_at is not None for d in place.domains.of(space, alice)] == [False, True]


def test_a_deleted_space_lets_go_of_its_domain(place: Place) -> None:
    alice, bob = place.world.actor("alice"), place.world.actor("bob")
    first, second = place.world.space("alice/app"), place.world.space("bob/app")
    old, new = place.domains.add(first, alice, "example.com"), place.domains.add(second, bob, "example.com")
    place.prove(old)
    place.prove(new)
    place.domains.verify(first, alice, "example.com")
    place.world.spaces.delete(first, alice)
    assert place.domains.verify(second, bob, "example.com").verified_at is not None
    assert "example.com" in place.hosts(second)


# --- over HTTP ----------------------------------------------------------------------------------
@pytest.fixture
def call(place: Place) -> Iterator[Caller]:
    app = create_app(place.world)  # type: ignore[arg-type]
    with TestClient(app, base_url="http://localhost:7860") as client:
        yield Caller(client, place.world)


def test_the_api(place: Place, call: Caller) -> None:
    place.world.space("alice/app")
    at = "/api/platform/spaces/alice/app/domains"
    made = call("POST", at, json={"domain": "bücher.example"}).json()
    assert (made["domain"], made["shown"], made["status"]) == ("xn--bcher-kva.example", "bücher.example", "pending")
    assert made["pointsTo"] == "alice-app.apps.example.org"
    proof = made["proof"]
    assert proof["name"] == "_spaces.xn--bcher-kva.example"
    place.names.records[proof["name"]] = [proof["value"]]
    verified = call("POST", f"{at}/b%C3%BCcher.example/verify")
    assert (verified.status_code, verified.json()["status"]) == (200, "active")
    assert [d["url"] for d in call("GET", at).json()] == ["https://xn--bcher-kva.example/"]
    assert call("DELETE", f"{at}/xn--bcher-kva.example").status_code == 200
    assert call("GET", at).json() == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "", None), ("POST", "", {"domain": "a.example"}), ("POST", "/a.example/verify", None),
     ("DELETE", "/a.example", None)],
)  # fmt: skip
def test_the_api_refuses_everybody_else(place: Place, call: Caller, method: str, path: str, body: object) -> None:
    place.world.space("alice/app")
    place.world.space("alice/hidden", visibility="private")
    for who, name, status in (
        (None, "app", 401),
        ("bob", "app", 403),
        ("bob", "hidden", 404),
        ("alice:read", "app", 403),
    ):
        at = f"/api/platform/spaces/alice/{name}/domains{path}"
        assert call(method, at, who=who, json=body).status_code == status, (who, name)


@pytest.mark.parametrize("domain", ["*.example.com", "spaces.example.org", "x.apps.example.org", "10.0.0.1", "a" * 300])
def test_the_api_refuses_names_that_are_not_theirs_to_give(place: Place, call: Caller, domain: str) -> None:
    place.world.space("alice/app")
    assert call("POST", "/api/platform/spaces/alice/app/domains", json={"domain": domain}).status_code == 400
