"""Every port that waits on this machine, with the processes that hold it."""

import portbook

for socket in portbook.listeners().sockets:
    names = ", ".join(f"{owner.name} ({owner.pid})" for owner in socket.owners) or "not visible"
    print(f"{socket.protocol} {socket.local_address} {socket.local_port}: {names}")
