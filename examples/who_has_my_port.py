"""Fail with a useful message when the port a server wants is held."""

import socket
import sys

import portbook

server = socket.create_server(("127.0.0.1", 0))  # stands for any program that has the port
port = server.getsockname()[1]

answer = portbook.who(port, "tcp")
for holder in answer.holders:
    owner = holder.owner
    print(f"port {port} is held by {owner.name} (pid {owner.pid}) for {holder.age_s or 0:.0f} s", file=sys.stderr)
server.close()
if not answer.held:
    sys.exit(f"port {port} should have been held")
