"""Give a child process a listening socket: it can start, crash and start again while clients wait in the queue."""

import socket
import subprocess
import sys

import portbook

SERVER = """
import portbook
(server,) = portbook.inherited()
client, _ = server.accept()
client.sendall(b"hello from the child")
"""

with portbook.lease(address="127.0.0.1") as held:
    client = socket.create_connection(("127.0.0.1", held.port))  # no server runs yet, and no client is refused
    subprocess_ended = held.start([sys.executable, "-c", "raise SystemExit('the first one fails')"]).wait()
    with held.start([sys.executable, "-c", SERVER], stdout=subprocess.DEVNULL):
        print(f"port {held.port}: {client.recv(100).decode()}, after one that ended with {subprocess_ended}")
    client.close()
