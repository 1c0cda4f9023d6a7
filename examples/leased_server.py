"""Serve on a port that is really yours: the server gets a bound socket, not a number that may be gone by then."""

import http.client
import http.server
import threading

import portbook


class Hello(http.server.BaseHTTPRequestHandler):
    """Answers every request."""

    def do_GET(self) -> None:
        """Say hello."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")


with portbook.lease(address="127.0.0.1") as held:
    server = http.server.HTTPServer(("127.0.0.1", held.port), Hello, bind_and_activate=False)
    server.socket.close()  # the one that it made for itself
    server.socket = held.socket
    server.server_activate()
    threading.Thread(target=server.handle_request).start()

    client = http.client.HTTPConnection("127.0.0.1", held.port, timeout=10)
    client.request("GET", "/")
    print(f"port {held.port} says {client.getresponse().read().decode()}")
    client.close()
