"""The process that stays: it holds the model between messages, for Flower starts a new process for each.

``python -m fedgen.federation.worker SOCKET`` answers one message at a time over a socket of the file system that only
its own user can open. `call` is the other half; it runs in Flower's process, so nothing here imports torch before there
is a worker.
"""

import argparse
import json
import logging
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence

from fedgen.federation.letter import MAX_BODY_BYTES, MAX_HEADER_BYTES, Letter

RECEIVE_S = 60.0
"""What a message may take to come in once it has begun; both ends are on one device."""

_LENGTHS = struct.Struct("!IQ")
_CREDENTIALS = struct.Struct("3i")
_PIECE_BYTES = 2**20
_log = logging.getLogger("fedgen")


def call(path: str, letter: Letter, place: dict[str, object], timeout_s: float) -> Letter:
    """The worker's answer to a letter.

    Args:
        path: of the socket.
        letter: what Flower brought.
        place: entries of `desk.Place`.
        timeout_s: for all of it. A worker that takes longer hangs and is killed, for its supervisor to start another.

    Raises:
        TimeoutError: it took longer.
        OSError: nobody listens there, or the worker died.
        ValueError: what came back is no letter.
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        pid, user, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if user != os.getuid():
            raise ConnectionError(f"{path} is served by another user")
        try:
            _send(connection, Letter(json.dumps({"place": place, "header": letter.header}), letter.body))
            return _receive(connection, deadline)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise


def main(arguments: Sequence[str] | None = None) -> None:
    """Answers messages until it is killed."""
    parser = argparse.ArgumentParser(prog="python -m fedgen.federation.worker", description=main.__doc__)
    parser.add_argument("socket", help="where to listen")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (1)")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        listener = _listen(chosen.socket)
    except OSError as error:
        sys.exit(f"cannot listen at {chosen.socket}: {error}; give a path of at most 100 letters that nobody uses")
    # Messages can wait from here on; the imports take seconds.
    from fedgen.lean import slim_down

    slim_down()
    from fedgen.federation.desk import Place, deal

    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.settimeout(RECEIVE_S)
                wrapped = _receive(connection, time.monotonic() + RECEIVE_S)
                if _is_gone(connection):
                    raise ConnectionError("the other end is gone")
                asked = json.loads(wrapped.header)
                place = Place(**asked["place"], num_threads=chosen.threads)
                answer = deal(Letter(asked["header"], wrapped.body), place)
                del wrapped
                _send(connection, answer)
                del answer
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                # Whoever called is gone, or is no shim of ours.
                _log.warning("a call was left unanswered: %s", error)


def _listen(path: str) -> socket.socket:
    """A socket that only this user can open. What a worker that died left behind is taken away.

    Raises:
        OSError: somebody listens there already, or it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            except FileNotFoundError:
                pass
            else:
                raise OSError("another worker listens there")
        listener.bind(path)
        listener.listen()
    finally:
        os.umask(before)
    return listener


def _is_gone(connection: socket.socket) -> bool:
    """Whether nobody waits for an answer any more, after this one had to wait for others."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(RECEIVE_S)


def _send(connection: socket.socket, letter: Letter) -> None:
    header = letter.header.encode()
    connection.sendall(_LENGTHS.pack(len(header), len(letter.body)) + header)
    if letter.body:
        # Without one, whoever is at the other end may have answered and gone by now.
        connection.sendall(letter.body)


def _receive(connection: socket.socket, deadline: float) -> Letter:
    """The letter that comes in.

    Raises:
        ConnectionError: the other end is gone.
        TimeoutError: it takes too long.
        ValueError: it is too large, or no letter.
    """
    header_bytes, body_bytes = _LENGTHS.unpack(_read(connection, _LENGTHS.size, deadline))
    # What wraps a letter has the experiment in it besides.
    if header_bytes > 4 * MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise ValueError(f"a letter of {header_bytes} + {body_bytes} bytes is no letter")
    header = _read(connection, header_bytes, deadline).decode()
    return Letter(header, _read(connection, body_bytes, deadline))


def _read(connection: socket.socket, length: int, deadline: float) -> bytearray:
    """So many bytes. Memory is taken as they come, not as they are promised."""
    found = bytearray()
    while len(found) < length:
        connection.settimeout(max(1e-3, deadline - time.monotonic()))
        piece = connection.recv(min(_PIECE_BYTES, length - len(found)))
        if not piece:
            raise ConnectionError("the other end is gone")
        found += piece
    return found


if __name__ == "__main__":
    main()
