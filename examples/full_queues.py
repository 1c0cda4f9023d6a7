"""Listeners that do not keep up: connections wait to be accepted (Linux)."""

import portbook

for socket in portbook.take("state:listen").sockets:
    if socket.accept_queue and socket.backlog:
        share = socket.accept_queue / socket.backlog
        names = ", ".join(owner.name or "?" for owner in socket.owners)
        print(f"{socket.local_port}: {socket.accept_queue} of {socket.backlog} waiting ({share:.0%}) {names}")
