"""Rule sets of nftables by chance: every kind of match, verdict and map that decides about a port. Pure."""

from __future__ import annotations

from random import Random

PORTS = (7001, 7002, 7003, 7004, 7005, 7006)
TARGETS = (9001, 9002, 9003, 9004)
CHAINS = ("c0", "c1", "c2", "c3")  # each jumps to later ones
DECLARED = f"""
set s {{ type inet_service; flags interval; elements = {{ {PORTS[0]}, {PORTS[2]}-{PORTS[3]} }}; }}
set cc {{ type inet_proto . inet_service; elements = {{ tcp . {PORTS[1]}, udp . {PORTS[2]} }}; }}
set a {{ type ipv4_addr; flags interval; elements = {{ 10.77.0.0/30, 127.0.0.1 }}; }}
map m {{ type inet_service : ipv4_addr . inet_service; elements = {{ {PORTS[4]} : 10.77.0.2 . {TARGETS[0]} }}; }}
"""
# p: a port, q-r: ports in order, t: a target, u-v: targets in order
MATCHES = (
    "tcp dport {p}", "tcp dport {q}-{r}", "tcp dport {{ {p}, {q} }}", "tcp dport != {p}", "tcp dport != {{ {p}, {r} }}",
    "tcp dport >= {p}", "tcp dport < {p}", "tcp dport @s", "udp dport {p}", "meta l4proto tcp", "meta l4proto udp",
    "meta l4proto {{ tcp, udp }}", "meta l4proto . th dport @cc", 'iifname "link0"', 'iifname "lo"', 'iifname "li*"',
    'iifname != "link0"', 'iifname != "docker0"', 'iifname {{ "link0", "eth9" }}', 'oifname "lo"', 'oifname != "lo"',
    'oifname "link0"', "ip daddr 10.77.0.2", "ip daddr 127.0.0.0/8", "ip daddr != 10.77.0.2", "ip daddr @a",
    "ip daddr {{ 10.77.0.2, 10.1.0.0/16 }}", "ip daddr 10.77.0.1-10.77.0.9", "ip6 daddr fd77::2", "ip6 daddr ::1",
    "ip6 daddr != fd77::2", "ip saddr 10.77.0.1", "ip saddr != 10.77.0.1", "ip saddr 10.9.0.0/16",
    "fib daddr type local", "fib daddr type != local", "fib saddr type local", "ct state new", "ct state != new",
    "ct state new,established", "ct state vmap {{ new : jump c3, invalid : drop }}", "meta nfproto ipv4",
    "meta nfproto ipv6", "meta mark 0", "meta mark 1", "ip daddr . tcp dport {{ 10.77.0.0/24 . {q}-{r} }}",
    'iifname . tcp dport {{ "link0" . {p} }}', "tcp flags & (fin|syn|rst|ack) == syn",
)  # fmt: skip
ENDS = ("accept", "return", "accept", "return")
NAT = (
    "meta l4proto {{ tcp, udp }} redirect to :{t}", "meta l4proto {{ tcp, udp }} redirect to :{t}",
    "meta l4proto tcp redirect to :{u}-{v}", "meta l4proto tcp redirect to :{q}-{r}", "meta l4proto tcp redirect",
    "meta l4proto tcp dnat ip to 10.77.0.2:{t}", "meta l4proto tcp dnat ip to 10.77.0.2",
    "meta l4proto tcp dnat ip6 to [fd77::2]:{t}", "dnat ip to tcp dport map @m",
    "meta l4proto tcp redirect to :tcp dport map {{ 7001 : {t}, 7002 : 9001 }}",
    "meta l4proto tcp dnat ip to numgen random mod 2 map {{ 0 : 10.77.0.2, 1 : 10.77.0.2 }}:{t}",
)  # fmt: skip
JUMPS = (
    "jump {c}", "goto {c}", "jump {c}", "numgen random mod 2 vmap {{ 0 : goto {c}, 1 : goto {c} }}",
    "tcp dport vmap {{ 7001 : jump {c}, 7002-7003 : goto {c}, 7004 : return, 7005 : accept }}",
    "meta l4proto . th dport vmap {{ tcp . {p} : jump {c}, udp . {q} : accept }}",
    "tcp dport vmap {{ {p} : accept, * : jump {c} }}",
)  # fmt: skip


def tables(chance: Random) -> str:
    """One table or two."""
    count = chance.randint(1, 2)
    return "\n".join(_table(chance, chance.choice(("inet", "inet", "ip")), f"t{number}") for number in range(count))


def _table(chance: Random, family: str, name: str) -> str:
    lines = [f"table {family} {name} {{", DECLARED]
    for number in reversed(range(len(CHAINS))):
        lines += [f"chain {CHAINS[number]} {{", *_rules(chance, CHAINS[number + 1 :]), "}"]
    for hook in ("prerouting", "output"):
        for number in range(chance.randint(0, 2)):
            priority = chance.choice((-100, -100, -90, -110))
            head = f"type nat hook {hook} priority {priority}; policy accept;"
            lines += [f"chain {hook}{number} {{", head, *_rules(chance, CHAINS), "}"]
    if chance.random() < 0.3:
        without = [_fill(chance, f"{chance.choice(MATCHES)} notrack", ()) for _ in range(2)]
        lines += ["chain raw {", "type filter hook prerouting priority -300; policy accept;", *without, "}"]
    return "\n".join((*lines, "}"))


def _rules(chance: Random, later: tuple[str, ...]) -> list[str]:
    actions = (*ENDS, *NAT, *(JUMPS if later else ()))
    rules = []
    for _ in range(chance.randint(1, 4)):
        matches = [chance.choice(MATCHES) for _ in range(chance.randint(0, 2))]
        rules.append(_fill(chance, " ".join((*matches, chance.choice(actions))), later))
    return rules


def _fill(chance: Random, text: str, later: tuple[str, ...]) -> str:
    low, high = sorted(chance.sample(PORTS, 2))
    first, last = sorted(chance.sample(TARGETS, 2))
    return text.format(
        p=chance.choice(PORTS), q=low, r=high, t=chance.choice(TARGETS), u=first, v=last,
        c=chance.choice(later or CHAINS[-1:]),
    )  # fmt: skip
