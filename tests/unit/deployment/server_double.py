"""A TLS server on loopback that answers as the proxy does, with a clock of its own."""

import contextlib
import ssl
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer


@contextlib.contextmanager
def serving(home, ahead_s=0.0, status=404, said=""):
    """Its port; every answer has a Date header that is `ahead_s` seconds ahead of this machine's clock.

    With `ahead_s` None there is no such header.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response_only(status)
            if ahead_s is not None:
                self.send_header("Date", formatdate(time.time() + ahead_s, usegmt=True))
            self.send_header("Content-Length", str(len(said)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, format, *arguments):
            pass

    class Server(HTTPServer):
        def handle_error(self, request, client_address):
            # A probe that refuses the certificate hangs up in the middle.
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.path / "server.pem", home.path / "server.key")
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
