"""Responses and their encoding (RFC 9112, section 4; the Date field of RFC 9110, section 6.6.1)."""

from __future__ import annotations

from time import gmtime, time

REASONS = {
    100: "Continue", 200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    411: "Length Required", 413: "Content Too Large", 414: "URI Too Long", 417: "Expectation Failed",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

TEXT = b"text/plain; charset=utf-8"
JSON = b"application/json"
BINARY = b"application/octet-stream"

_STATUS_LINES = {status: b"HTTP/1.1 %d %s\r\n" % (status, reason.encode("ascii")) for status, reason in REASONS.items()}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Response:
    """A response, as a handler returns it.

    Attributes:
        status: the HTTP status code.
        body: the complete content.
        type: the value of Content-Type.
        fields: further header fields, as pairs of name and value.
    """

    __slots__ = ("body", "fields", "status", "type")

    def __init__(
        self, body: bytes, status: int = 200, type: bytes = TEXT, fields: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        self.body = body
        self.status = status
        self.type = type
        self.fields = fields


class _Date:
    """The Date field of the current second, which is formatted once a second and not for each response."""

    second = 0
    line = b""


def date_line(now: float | None = None) -> bytes:
    """Return the Date header field, with CR LF, for `now` in seconds since the epoch."""
    second = int(time() if now is None else now)
    if second != _Date.second:
        t = gmtime(second)
        _Date.line = (
            f"Date: {_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
            f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT\r\n"
        ).encode("ascii")
        _Date.second = second
    return _Date.line


def encode(response: Response, *, keep_alive: bool, minor: int, with_body: bool = True) -> bytes:
    """Encode a response.

    Args:
        response: the response.
        keep_alive: whether the connection stays open; stated in a header unless it is the default of the version.
        minor: the minor HTTP version of the request.
        with_body: False for HEAD, which gets the same head without the body (RFC 9110, section 9.3.2).
    """
    body = response.body
    head = b"%s%sContent-Type: %s\r\nContent-Length: %d\r\n%s%s\r\n" % (
        _STATUS_LINES[response.status],
        date_line(),
        response.type,
        len(body),
        _connection(keep_alive, minor),
        b"".join([b"%s: %s\r\n" % field for field in response.fields]) if response.fields else b"",
    )
    return head + body if with_body else head


def encode_stream_head(*, length: int | None, keep_alive: bool, minor: int) -> bytes:
    """Encode the head of a 200 response whose body follows in pieces, chunked unless the length is known."""
    framing = b"Transfer-Encoding: chunked\r\n" if length is None else b"Content-Length: %d\r\n" % length
    return b"%s%sContent-Type: %s\r\n%s%s\r\n" % (
        _STATUS_LINES[200], date_line(), BINARY, framing, _connection(keep_alive, minor),
    )  # fmt: skip


def _connection(keep_alive: bool, minor: int) -> bytes:
    if keep_alive:
        return b"" if minor else b"Connection: keep-alive\r\n"
    return b"Connection: close\r\n"
