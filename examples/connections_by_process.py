"""How many connections each process has open, most first."""

from collections import Counter

import portbook

listing = portbook.take("state:connected protocol:tcp")
counts = Counter(owner.name for socket in listing.sockets for owner in socket.owners)
for name, count in counts.most_common(10):
    print(f"{count:6} {name}")
print(f"{sum(counts.values())} connections with a visible owner, {len(listing.sockets)} in all")
