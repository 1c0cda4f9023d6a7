"""Ports that every network can reach, as a check for a deployment: exit 1 when there is one outside an allow-list."""

import sys

import portbook

ALLOWED = {22, 80, 443}

listing = portbook.take("state:listening reach:any")
exposed = sorted({(s.local_port, s.protocol) for s in listing.sockets if s.local_port not in ALLOWED})
for port, protocol in exposed:
    print(f"{port}/{protocol} is reachable from every network")
for gap in listing.gaps:
    print(f"not known: {gap.why}", file=sys.stderr)
sys.exit(1 if exposed else 0)
