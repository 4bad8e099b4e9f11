"""The packet filter rules as values: what a packet meets, in the order in which it meets it."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest

from spaces_platform.adapters.docker import build_fences, fence
from spaces_platform.adapters.docker.fence import Allowed, FenceRules
from spaces_platform.adapters.docker.names import Names
from spaces_platform.adapters.docker.settings import DockerSettings
from spaces_platform.cli.doctor.network import judge_build_fences
from spaces_platform.errors import Invalid

GOLDEN = Path(__file__).parent / "golden"
RULES = FenceRules(("sp0123-+",), (80, 443, 8080), (Allowed("10.0.0.5/32", 3128), Allowed("10.1.0.0/16")))


def texts() -> str:
    v4 = fence.rules_v4("0123abcd", RULES, ("192.168.1.1",))
    hooks = fence.hooks("0123abcd", RULES, "DOCKER-USER")
    build = fence.hooks("build", FenceRules(("docker0",), inbound=True), "DOCKER-USER")
    return "\n".join(
        [fence.restore_text("0123abcd", v4, hooks), fence.restore_text("0123abcd", fence.rules_v6("0123abcd"), hooks),
         fence.restore_text("build", [], build)]
    )  # fmt: skip


def test_the_rules_are_as_they_were_agreed() -> None:
    path = GOLDEN / "fence.txt"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(texts())
    assert texts() == path.read_text()


def verdict(address: str, port: int, protocol: str = "tcp", *, to_host: bool = False, state: str = "NEW") -> str:
    """What the rules say to one packet: an interpreter of the few words they are made of."""
    chain = fence.chains("0123abcd")[1 if to_host else 0]
    for line in fence.rules_v4("0123abcd", RULES, ("192.168.1.1",)):
        words = line.split()
        if words[1] != chain:
            continue
        option = {words[i]: words[i + 1] for i in range(2, len(words) - 1) if words[i].startswith("-")}
        if "-d" in option and ipaddress.ip_address(address) not in ipaddress.ip_network(option["-d"]):
            continue
        if "-p" in option and option["-p"] != protocol:
            continue
        if "--dport" in option and int(option["--dport"]) != port:
            continue
        if "--dports" in option and str(port) not in option["--dports"].split(","):
            continue
        if "--ctstate" in option and state not in option["--ctstate"].split(","):
            continue
        return option["-j"]
    return "falls through"


@pytest.mark.parametrize(
    ("address", "port", "protocol", "result"),
    [
        ("93.184.216.34", 443, "tcp", "RETURN"),
        ("93.184.216.34", 80, "tcp", "RETURN"),
        ("93.184.216.34", 8080, "tcp", "RETURN"),
        ("93.184.216.34", 25, "tcp", "REJECT"),
        ("93.184.216.34", 3333, "tcp", "REJECT"),
        ("93.184.216.34", 22, "tcp", "REJECT"),
        ("93.184.216.34", 443, "udp", "REJECT"),
        ("8.8.8.8", 53, "udp", "REJECT"),
        ("169.254.169.254", 80, "tcp", "REJECT"),
        ("10.213.0.2", 7860, "tcp", "REJECT"),
        ("10.213.0.2", 80, "tcp", "REJECT"),
        ("172.17.0.1", 443, "tcp", "REJECT"),
        ("192.168.1.7", 80, "tcp", "REJECT"),
        ("100.64.0.1", 443, "tcp", "REJECT"),
        ("224.0.0.251", 5353, "udp", "REJECT"),
        ("255.255.255.255", 67, "udp", "REJECT"),
        ("10.0.0.5", 3128, "tcp", "RETURN"),
        ("10.0.0.5", 3129, "tcp", "REJECT"),
        ("10.1.2.3", 5432, "tcp", "RETURN"),
        ("192.168.1.1", 53, "udp", "RETURN"),
        ("192.168.1.1", 53, "tcp", "RETURN"),
        ("192.168.1.1", 80, "tcp", "REJECT"),
    ],
)
def test_what_passes(address: str, port: int, protocol: str, result: str) -> None:
    assert verdict(address, port, protocol) == result


def test_the_host_answers_and_is_never_called() -> None:
    assert verdict("93.184.216.34", 443, to_host=True) == "REJECT"
    assert verdict("10.213.0.1", 7860, to_host=True) == "REJECT"
    assert verdict("10.213.0.1", 40000, to_host=True, state="ESTABLISHED") == "RETURN"
    assert verdict("10.0.0.5", 3128, to_host=True) == "RETURN"


def test_every_address_that_is_not_public_is_refused() -> None:
    """Held against the standard library's table of the same registries."""
    closed = (
        "0.1.2.3 10.1.2.3 100.100.1.1 127.0.0.1 169.254.1.1 172.31.0.1 192.0.0.1 192.0.2.1 192.168.0.1 198.18.0.1 "
        "198.51.100.1 203.0.113.1 240.0.0.1 255.255.255.255"
    )
    for text in closed.split():
        assert not ipaddress.ip_address(text).is_global
        assert any(ipaddress.ip_address(text) in ipaddress.ip_network(network) for network in fence.NOT_PUBLIC)
    for text in ("1.1.1.1", "11.0.0.1", "100.128.0.1", "172.32.0.1", "192.0.1.1", "223.255.255.1"):
        assert not any(ipaddress.ip_address(text) in ipaddress.ip_network(network) for network in fence.NOT_PUBLIC)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("10.0.0.5:3128", Allowed("10.0.0.5/32", 3128)),
        ("10.1.0.0/16", Allowed("10.1.0.0/16")),
        (" 10.0.0.5 ", Allowed("10.0.0.5/32")),
    ],
)
def test_exceptions_are_read(text: str, allowed: Allowed) -> None:
    assert fence.parse_allow(text) == allowed


@pytest.mark.parametrize(
    "text", ["", "proxy:3128", "10.0.0.5:", "10.0.0.5:0", "10.0.0.5:99999", "10.1.0.1/16", "::1", "1 -j"]
)
def test_a_misspelt_exception_is_an_error_and_never_a_rule(text: str) -> None:
    with pytest.raises(Invalid):
        fence.parse_allow(text)


def test_ports_are_checked() -> None:
    with pytest.raises(Invalid):
        fence.fence_of(DockerSettings(egress_ports=(80, 70000)), ("x+",))


def test_only_name_servers_that_containers_ask_themselves_need_a_rule() -> None:
    lines = ("# by hand", *(f"nameserver {a}" for a in ("127.0.0.53", "192.168.1.1", "fe80::1%eth0", "x")), "options y")
    text = "\n".join(lines)
    assert fence.name_servers(text) == ("192.168.1.1",)


def test_a_long_list_of_ports_is_cut_to_what_one_rule_takes() -> None:
    lines = fence.rules_v4("x", FenceRules(("y",), tuple(range(1, 41))), ())
    assert [line.count(",") for line in lines if "multiport" in line] == [14, 14, 9]


SAVED = """\
-P INPUT ACCEPT
-N DOCKER-USER
-N SPACES-0123abcdb-HOST
-N SPACES-0123abcdb-OUT
-N SPACES-0123abcd-OUT
-A INPUT -i docker0 -j SPACES-0123abcdb-HOST
-A INPUT -i docker0 -j SPACES-0123abcdb-HOST
-A DOCKER-USER -i docker0 -j SPACES-0123abcdb-OUT
-A DOCKER-USER -i sp0123-+ -j SPACES-0123abcd-OUT
-A DOCKER-USER ! -i sp0123-+ -o sp0123-+ -m conntrack --ctstate NEW -j DROP
-A SPACES-0123abcdb-OUT -j REJECT --reject-with icmp-admin-prohibited
-A SPACES-0123abcd-OUT -j REJECT --reject-with icmp-admin-prohibited
""".splitlines()


def test_a_fence_is_removed_with_all_that_leads_to_it_and_nothing_else() -> None:
    assert fence.removal_text("0123abcdb", SAVED).splitlines() == [
        "*filter",
        "-D INPUT -i docker0 -j SPACES-0123abcdb-HOST",
        "-D INPUT -i docker0 -j SPACES-0123abcdb-HOST",
        "-D DOCKER-USER -i docker0 -j SPACES-0123abcdb-OUT",
        "-F SPACES-0123abcdb-OUT",
        "-F SPACES-0123abcdb-HOST",
        "-X SPACES-0123abcdb-OUT",
        "-X SPACES-0123abcdb-HOST",
        "COMMIT",
    ]
    hooks = fence.hooks("0123abcd", FenceRules(("sp0123-+",)), "DOCKER-USER")
    apps = fence.removal_text("0123abcd", SAVED, hooks).splitlines()
    assert [line for line in apps if line.startswith("-D")] == [
        "-D DOCKER-USER -i sp0123-+ -j SPACES-0123abcd-OUT",
        "-D DOCKER-USER ! -i sp0123-+ -o sp0123-+ -m conntrack --ctstate NEW -j DROP",
    ]
    assert fence.removal_text("ffffffffb", SAVED) == ""


def test_fences_of_builds_are_told_from_those_of_apps() -> None:
    assert build_fences.names_of(SAVED) == ["0123abcdb"]


@pytest.mark.parametrize(
    ("standing", "held", "level", "words"),
    [
        ((), (), "ok", "own"),
        (("mineb",), (), "ok", "own"),
        (("mineb", "goneb"), ("mineb",), "warn", "goneb"),
        (("mineb", "otherb"), ("mineb", "otherb"), "warn", "1 other"),
    ],
)
def test_the_doctor_tells_of_other_fences(
    standing: tuple[str, ...], held: tuple[str, ...], level: str, words: str
) -> None:
    [check] = judge_build_fences("mineb", standing, held)
    assert check.level == level
    assert words in check.found


def test_behind_systemd_resolved_the_servers_are_those_that_it_asks(tmp_path: Path) -> None:
    stub, upstream = tmp_path / "resolv.conf", tmp_path / "upstream"
    assert fence.resolv_conf(stub, upstream) == ""
    stub.write_text("# made by systemd\nnameserver 127.0.0.53\noptions edns0\n")
    assert fence.name_servers(fence.resolv_conf(stub, upstream)) == ()
    upstream.write_text("nameserver 192.168.1.1\n")
    assert fence.name_servers(fence.resolv_conf(stub, upstream)) == ("192.168.1.1",)
    stub.write_text("nameserver 127.0.0.53\nnameserver 10.0.0.53\n")
    assert fence.name_servers(fence.resolv_conf(stub, upstream)) == ("10.0.0.53",)


def test_apps_under_gvisor_are_told_the_same_servers_or_why_there_are_none(tmp_path: Path) -> None:
    source, names = tmp_path / "source", Names(tmp_path / "theirs", tmp_path / "source")
    source.write_text("search lan\nnameserver 10.0.0.53\nnameserver ::1\nnameserver 127.0.0.1\n")
    assert names.refresh() == ""
    assert names.path.read_text() == "nameserver 10.0.0.53\n"
    source.write_text("nameserver 127.0.0.1\n")
    assert "loopback" in names.refresh()
    assert names.path.read_text() == ""
    assert "could not be written" in Names(tmp_path / "none/theirs", source).refresh()
