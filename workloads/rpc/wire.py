"""What goes over the wire between a handler and a service: four bytes of length, then JSON, both ways.

A call is an object with what the service needs to know; a reply is an object with what it contributes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

MAX_MESSAGE = 65536
"""Bytes; a longer message is not one of ours."""
_LENGTH = 4


class RpcError(Exception):
    """A call failed; `status` is what the handler's own client is told.

    503: the service refuses connections. 504: it did not answer in time. 502: it died, or its answer is no answer.
    """

    def __init__(self, status: int, service: str, detail: str) -> None:
        super().__init__(f"service {service} {detail}")
        self.status = status


def encode(message: Message) -> bytes:
    """A message as bytes."""
    from json import dumps  # 8 ms, and most servers never see a call

    body = dumps(message, separators=(",", ":")).encode("ascii")
    return len(body).to_bytes(_LENGTH, "big") + body


class Decoder:
    """Takes bytes in any fragments, gives messages."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Message | None:
        """The message that these bytes complete, if they do; one at a time is under way on a connection.

        Raises:
            ValueError: this is no message of ours, or more than one.
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
    """What a client makes of bytes from a service: the complete reply, or None if more is to come.

    Raises:
        RpcError: 502, the connection ended or the bytes are no reply.
    """
    if not data:
        raise RpcError(502, service, "died before it answered")
    try:
        return decoder.feed(data)
    except ValueError:
        raise RpcError(502, service, "gave a malformed answer") from None
