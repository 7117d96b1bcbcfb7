"""Messages between workers and servers: a header, then the raw bytes of one flat vector, over TCP.

A step's gradients for a server are one message, and the parameters that it answers with are one. Bytes go from the
tensor's memory to the socket and back without a copy in between. Numbers travel in the machines' own byte order.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
from enum import IntEnum
from typing import NamedTuple

_HEADER = struct.Struct("!BIQ")
_HELLO = struct.Struct("!32sI")
RATE_FACTOR = struct.Struct("!d")
_WELCOME = b"\x01"
_TOKEN_BYTES = 32

CONNECT_LIMIT_S = 30.0
HANDSHAKE_LIMIT_S = 10.0


class Kind(IntEnum):
    """What a message says."""

    # a worker to a server
    PUSH = 1
    """Gradients; the answer is VALUES."""
    SKIP = 2
    """A step whose gradients overflowed: it counts, and changes nothing; the answer is VALUES."""
    PULL = 3
    """The answer is VALUES."""
    SET = 4
    """Initial parameters; the answer is DONE."""
    RESET = 5
    """Back to the initial parameters, and nothing counted yet; the answer is DONE."""
    COUNT = 6
    """The answer is COUNTS."""
    BYE = 7
    """No answer."""
    RATE = 8
    """What the optimiser's learning rates are to be multiplied with for this worker's gradients from now on: a number
    as `RATE_FACTOR` packs it; no answer."""
    # a server to a worker
    VALUES = 16
    """Parameters."""
    DONE = 17
    COUNTS = 18
    """What the server has done so far, as JSON."""
    LOST = 19
    """Another worker is gone: text."""
    FAILED = 20
    """The server has failed: text."""


class Header(NamedTuple):
    """What comes before the bytes."""

    kind: Kind
    number: int
    """Of the worker's step, from 1, where there is one."""
    size_bytes: int


class Address(NamedTuple):
    """Where a server listens, and what it wants to hear before it listens to anybody."""

    host: str
    port: int
    token: bytes


class Link:
    """One connection's two directions, as messages."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, kind: Kind, payload: bytes | memoryview = b"", number: int = 0) -> None:
        """Send a message. Raises OSError where the other side is gone."""
        body = memoryview(payload)
        header = _HEADER.pack(kind, number, len(body))
        sent = self.connection.sendmsg((header, body))
        if sent < len(header):
            self.connection.sendall(header[sent:])
        self.connection.sendall(body[max(0, sent - len(header)) :])

    def receive_header(self) -> Header:
        """Wait for the next message. Raises OSError where the other side is gone."""
        kind, number, size = _HEADER.unpack(self.receive(_HEADER.size))
        return Header(Kind(kind), number, size)

    def receive(self, size_bytes: int) -> bytes:
        """That many bytes; short texts, not tensors."""
        buffer = bytearray(size_bytes)
        self.receive_into(memoryview(buffer))
        return bytes(buffer)

    def receive_into(self, target: memoryview) -> None:
        """Fill the memory with what comes. Raises OSError where the other side is gone."""
        while len(target):
            count = self.connection.recv_into(target, 0, socket.MSG_WAITALL)
            if not count:
                raise ConnectionResetError("connection closed by peer")
            target = target[count:]

    def close(self) -> None:
        """Both directions."""
        self.connection.close()


def new_token() -> bytes:
    """A server's secret: a port on a cluster's network can be reached by all its users."""
    return secrets.token_bytes(_TOKEN_BYTES)


def knock(address: Address, rank: int) -> Link:
    """Connect to a server as the worker of that rank.

    Raises:
        OSError: nobody listens there, or this token or rank is not let in.
    """
    connection = socket.create_connection((address.host, address.port), CONNECT_LIMIT_S)
    try:
        link = Link(connection)
        connection.sendall(_HELLO.pack(address.token, rank))
        link.receive(len(_WELCOME))
        connection.settimeout(None)
    except OSError:
        connection.close()
        raise
    return link


def hear_out(connection: socket.socket, token: bytes) -> int | None:
    """The rank of a worker that knocks; None for a stranger. To be followed by `let_in`, or by closing.

    Raises:
        OSError: it went away, or said nothing for HANDSHAKE_LIMIT_S.
    """
    connection.settimeout(HANDSHAKE_LIMIT_S)
    said, rank = _HELLO.unpack(Link(connection).receive(_HELLO.size))
    return int(rank) if hmac.compare_digest(said, token) else None


def let_in(connection: socket.socket) -> Link:
    """Tell a worker that it may send."""
    connection.sendall(_WELCOME)
    connection.settimeout(None)
    return Link(connection)
