"""The wire format of calls and replies: four bytes of length, then a JSON object."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

MAX_MESSAGE = 65536
"""Maximum bytes of a message."""
_LENGTH = 4


class RpcError(Exception):
    """A failed call, with the HTTP status for the handler's client.

    503: the service refuses connections. 504: it did not reply in time. 502: it died, or its reply is malformed.
    """

    def __init__(self, status: int, service: str, detail: str) -> None:
        super().__init__(f"service {service} {detail}")
        self.status = status


def encode(message: Message) -> bytes:
    """Encode a message."""
    from json import dumps  # imported here because it takes 8 ms, and most servers make no call

    body = dumps(message, separators=(",", ":")).encode("ascii")
    return len(body).to_bytes(_LENGTH, "big") + body


class Decoder:
    """Decodes a message that arrives in any fragments."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Message | None:
        """Add bytes. Returns the message once it is complete, else None.

        Raises:
            ValueError: the bytes are not a message, or are more than one.
        """
        from json import loads

        self._buffer += data
        if len(self._buffer) < _LENGTH:
            return None
        length = int.from_bytes(self._buffer[:_LENGTH], "big")
        if length > MAX_MESSAGE or len(self._buffer) > _LENGTH + length:
            raise ValueError("not a message of this protocol")
        if len(self._buffer) < _LENGTH + length:
            return None
        message = loads(self._buffer[_LENGTH:])
        self._buffer = b""
        if not isinstance(message, dict):
            raise ValueError("a message is an object")
        return message


def reply_of(service: str, decoder: Decoder, data: bytes) -> Message | None:
    """Add bytes from a service to a client's decoder. Returns the reply once it is complete, else None.

    Raises:
        RpcError: 502, the connection has ended, or the bytes are not a reply.
    """
    if not data:
        raise RpcError(502, service, "died before it answered")
    try:
        return decoder.feed(data)
    except ValueError:
        raise RpcError(502, service, "gave a malformed answer") from None
