"""A strict parser for the head of a request.

The parsing is done by httptools (Node's parser, in C). That parser accepts forms that two servers in a row may read
differently, which makes request smuggling possible (RFC 9112, section 11.2): bare LF, folded lines, white space before
a colon; which ones depends on its version. So the bytes are checked here first. The checks are a few C calls on the
whole head. (They use `find` instead of `in` because, for bytes, `in` first tries its left side as a number, and raises
and clears a TypeError inside. A regular expression would be as fast, but importing `re` takes a third of the server's
start.)
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from workloads.http.request import HttpError, Request, unquote

METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH"))
"""Methods that are recognised (RFC 9110, section 9; RFC 5789). Any other, also CONNECT, gets 501."""

MAX_FIELDS = 100
"""Maximum number of header fields; more get 431."""

BAD_LINE = "a line must end with CR and LF, and have no other control character but tab"

_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_HOST_BYTES = b"%-._~!$&'()*+,;=:[]0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SINGLE = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect", b"content-type"))


class HeadParser:
    """Parses the heads of one connection, one after the other. httptools calls `on_url` and `on_header`."""

    __slots__ = ("_fields", "_headers", "_host", "_parser", "_repeated", "_target")

    def __init__(self) -> None:
        self._parser: HttpRequestParser | None = None
        self._host = b""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._fields = 0
        self._repeated = False

    def on_url(self, url: bytes) -> None:
        """Store a part of the target; called by httptools."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header field; called by httptools."""
        self._fields += 1
        name = name.lower()
        headers = self._headers
        if name in headers:
            if name in _SINGLE:
                self._repeated = True
            value = headers[name] + b", " + value
        headers[name] = value.rstrip(b" \t")  # leading white space is removed by httptools

    def parse(self, head: bytes) -> Request:
        """Parse one head, from the request line to the empty line, inclusive.

        Raises:
            HttpError: 400, 431, 501 or 505.
        """
        lines = head.count(b"\r\n")
        if head.translate(None, _TEXT) != b"\r\n" * lines:
            raise HttpError(400, BAD_LINE)
        if head.find(b"\r\n ") >= 0 or head.find(b"\r\n\t") >= 0:
            raise HttpError(400, "folded header lines are not allowed")
        method, target, minor = _request_line(head)
        if lines - 2 > MAX_FIELDS:
            raise HttpError(431, f"more than {MAX_FIELDS} header fields")
        self._target = b""
        headers: dict[bytes, bytes] = {}
        self._headers = headers
        self._fields = 0
        self._feed(head if minor < 2 else head.replace(b" HTTP/1.%d\r\n" % minor, b" HTTP/1.1\r\n", 1))
        # Each line must be one field for httptools too: smuggling needs two parsers that disagree.
        if self._target != target or self._fields != lines - 2 or not _names_are_tokens(headers):
            raise HttpError(400, "malformed header field")
        if self._repeated:
            raise HttpError(400, "a header field that may appear once is repeated")
        self._check_host(headers, minor)
        path, _, query = target.partition(b"?")
        if path[:1] != b"/":
            path = _other_form(method, path)
        request = Request(method, unquote(path) if path.find(b"%") >= 0 else path, query, headers, 1 if minor else 0)
        if len(headers) > 1 or not minor:  # otherwise the only field is Host, which is checked
            _framing(request)
        return request

    def _check_host(self, headers: dict[bytes, bytes], minor: int) -> None:
        """Check that Host is present and well-formed (RFC 9112, section 3.2). The same one is not checked twice."""
        host = headers.get(b"host")
        if host is None:
            if minor:
                raise HttpError(400, "Host is missing")
        elif host != self._host:
            if host.translate(None, _HOST_BYTES):
                raise HttpError(400, "malformed Host")
            self._host = host

    def release(self) -> None:
        """Drop httptools' parser, which refers back to this object, so that no reference cycle remains."""
        self._parser = None

    def _feed(self, head: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = HttpRequestParser(self)
        # After a head with a body or an upgrade, the parser expects it; a parser is kept only if it expects a head.
        self._parser = None
        try:
            parser.feed_data(head)
        except HttpParserUpgrade:  # a server may ignore Upgrade (RFC 9110, section 7.8)
            return
        except HttpParserError as error:
            raise HttpError(400, "malformed request") from error
        headers = self._headers
        if b"content-length" not in headers and b"transfer-encoding" not in headers and b"connection" not in headers:
            self._parser = parser


_tokens: set[bytes] = set()
"""Field names that are known to be tokens. Clients send the same few names, and a set is faster than a check."""


def _names_are_tokens(headers: dict[bytes, bytes]) -> bool:
    if _tokens.issuperset(headers):
        return True
    if b"" in headers or b"".join(headers).translate(None, _TOKEN):
        return False
    if len(_tokens) < 1000:  # a bound, so that a client that invents names cannot fill the memory
        _tokens.update(headers)
    return True


def _request_line(head: bytes) -> tuple[bytes, bytes, int]:
    """Parse the request line into method, target and minor version (RFC 9112, section 3)."""
    line = head[: head.index(b"\r\n")]
    parts = line.split(b" ")
    if len(parts) != 3:
        raise HttpError(400, "malformed request line")
    method, target, version = parts
    if not target or not target.isascii() or target.find(b"\t") >= 0:
        raise HttpError(400, "malformed target")
    if version == b"HTTP/1.1":
        minor = 1
    elif version == b"HTTP/1.0":
        minor = 0
    else:
        minor = _minor_version(version)
    if method not in METHODS:
        if not method or method.translate(None, _TOKEN):
            raise HttpError(400, "malformed method")
        raise HttpError(501, "this method is not implemented")
    return method, target, minor


def _minor_version(version: bytes) -> int:
    if len(version) != 8 or not version.startswith(b"HTTP/") or version[6:7] != b"." or not version[5:8:2].isdigit():
        raise HttpError(400, "malformed HTTP version")
    if version[5:6] != b"1":
        raise HttpError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    return int(version[7:8])  # a higher minor version is treated as the highest known (RFC 9110, section 2.5)


def _other_form(method: bytes, path: bytes) -> bytes:
    """Return the path of an absolute-form target, or `*` for OPTIONS (RFC 9112, section 3.2)."""
    if path[:7].lower() == b"http://" and len(path) > 7 and path[7:8] != b"/":
        return b"/" + path[7:].partition(b"/")[2]
    if path == b"*" and method == b"OPTIONS":
        return path
    raise HttpError(400, "malformed target")


def _framing(request: Request) -> None:
    """Set the length of the body, and whether the connection is kept open (RFC 9112, sections 6 and 9.3)."""
    headers = request.headers
    connection = headers.get(b"connection")
    if connection is not None:
        for option in connection.lower().split(b","):
            name = option.strip()
            if name == b"close":
                request.keep_alive = False
                break  # it takes precedence over keep-alive
            if name == b"keep-alive":
                request.keep_alive = True
    length = headers.get(b"content-length")
    if length is not None:
        if not length.isdigit() or len(length) > 18:
            raise HttpError(400, "malformed Content-Length")
        request.length = int(length)
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise HttpError(400, "both Content-Length and Transfer-Encoding")
        if not request.minor:
            raise HttpError(400, "Transfer-Encoding in HTTP/1.0")
        *others, last = [item.strip() for item in coding.lower().split(b",")]
        if last != b"chunked" or b"chunked" in others:
            raise HttpError(400, "the body's end cannot be told: chunked has to be the last transfer coding, once")
        if others:
            raise HttpError(501, "the only transfer coding known here is chunked")
        request.chunked = True
