"""``fedgen dashboard``: a page on this machine that shows a fleet and its newest run as they are.

It listens on the loopback address only and has no address that changes anything. A web page from elsewhere could still
make a browser ask it, under a name that resolves to this machine, so only the machine's own names are answered.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgen.deployment.snapshot import Watch
from fedgen.errors import FedgenError, RunError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
NAMES = frozenset({HOST, "localhost", "[::1]"})
PAGE = Path(__file__).with_name("page")


def application(watch: Watch) -> "Starlette":
    """The page at `/`, and what it shows at `/state`.

    Args:
        watch: looks at the home.
    """
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    page, policy = _page()
    look = _one_at_a_time(watch)
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy,
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }

    def show(request: "Request") -> "Response":
        refused = _refused(request)
        return refused or Response(page, media_type="text/html; charset=utf-8", headers=headers)

    def state(request: "Request") -> "Response":
        refused = _refused(request)
        if refused:
            return refused
        content = look()
        # What is always different is no reason to send the rest again.
        tag = '"' + hashlib.sha256(json.dumps({**content, "when": 0}).encode()).hexdigest()[:24] + '"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={**headers, "ETag": tag})
        return Response(json.dumps(content), media_type="application/json", headers={**headers, "ETag": tag})

    return Starlette(routes=[Route("/", show, methods=["GET"]), Route("/state", state, methods=["GET"])])


def serve(watch: Watch, port: int, ready: Callable[[str], None]) -> None:
    """Serves the page until it is interrupted.

    Args:
        watch: looks at the home.
        port: to listen on; 0 for any that is free.
        ready: is told the address once it answers.

    Raises:
        FedgenError: the home is none, or the port is in use.
    """
    watch.look()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise RunError(f"port {port} cannot be had: {error.strerror}; name another with --port") from error
    with listener:
        taken = listener.getsockname()[1]
        ready(f"http://{HOST}:{taken}/")
        server(watch).run(sockets=[listener])


def server(watch: Watch, port: int = 0) -> "uvicorn.Server":
    """A server of the page, and of nothing that the page does not need.

    Args:
        watch: looks at the home.
        port: of the loopback address, unless it is given a socket; 0 for any that is free.
    """
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            application(watch),
            host=HOST,
            port=port,
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
        )
    )


def _refused(request: "Request") -> "Response | None":
    """An answer to who asks under another name; None to who may see the page.

    The port is not looked at, since the page may be looked at through a tunnel that ends at another one.
    """
    from starlette.responses import PlainTextResponse

    name = re.sub(r":\d+$", "", request.headers.get("host", "").lower())
    return None if name in NAMES else PlainTextResponse(f"this page is for {HOST} only\n", status_code=421)


def _one_at_a_time(watch: Watch) -> Callable[[], dict[str, Any]]:
    """Looks, for one browser after the other; what is wrong becomes part of what is shown."""
    lock = threading.Lock()

    def look() -> dict[str, Any]:
        with lock:
            try:
                return watch.look()
            except FedgenError as error:
                return {"error": str(error)}

    return look


def _page() -> tuple[bytes, str]:
    """The page as one file, and a policy that lets it run its own script and nothing else."""
    style, script = ((PAGE / name).read_text() for name in ("style.css", "script.js"))
    page = (PAGE / "page.html").read_text().replace("/*style*/", style).replace("/*script*/", script)
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"
        for content in (style, script)
    ]
    policy = (
        f"default-src 'none'; style-src {hashes[0]}; script-src {hashes[1]}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode(), policy
