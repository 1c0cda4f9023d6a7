"""What receives events in watch.py: datagrams of syslog, and requests of a webhook. Counts listeners that opened.

python benchmarks/receivers.py 5514 8088       until the input is closed; then prints the counts as JSON
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

LARGEST = 1 << 16
OPENED = {"opened", "restarted"}
COUNTS: Counter[str] = Counter()


def receive_datagrams(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        sock.bind(("127.0.0.1", port))
        while True:
            text = sock.recv(LARGEST)
            COUNTS["syslog"] += b" opened " in text or b'event="opened"' in text or b" restarted " in text


class Receiver(BaseHTTPRequestHandler):
    """Takes every request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        COUNTS["webhook"] += sum(event["event"] in OPENED for event in json.loads(body)["events"])
        COUNTS["requests"] += 1
        self.send_response(204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main(syslog: int, webhook: int) -> None:
    threading.Thread(target=receive_datagrams, args=(syslog,), daemon=True).start()
    server = HTTPServer(("127.0.0.1", webhook), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    print(json.dumps(COUNTS), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
