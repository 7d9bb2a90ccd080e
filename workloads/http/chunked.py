"""A strict decoder of chunked bodies (RFC 9112, section 7.1)."""

from __future__ import annotations

from workloads.http.request import HttpError

_HEX = b"0123456789abcdefABCDEF"
_LINE_BYTES = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

MAX_LINE = 256
"""Maximum bytes of a chunk's size line, with its extensions and CR LF."""
MAX_TRAILERS = 4096
"""Maximum bytes of all trailer fields together. They are checked and dropped."""

_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)


class ChunkedDecoder:
    """Decodes a chunked body that arrives in any fragments.

    Attributes:
        done: True once the last chunk and the trailers have been read.
        rest: bytes not used yet: an incomplete line or, after the body, what follows it.
    """

    __slots__ = ("_left", "_state", "_trailers", "done", "rest")

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0
        self._trailers = 0
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Decode more bytes. Returns the data in them, which may be empty.

        Raises:
            HttpError: 400, the coding is malformed; 431, the trailers are too long.
        """
        data = self.rest + data if self.rest else data
        self.rest = b""
        pieces = []
        position = 0
        while not self.done:
            if self._state == _DATA:
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if self._left:
                    return b"".join(pieces)
                self._state = _DATA_END
                continue
            if self._state == _DATA_END:
                end = data[position : position + 2]
                if end not in (b"", b"\r", b"\r\n"):
                    raise HttpError(400, "chunk longer than its size")
                if len(end) < 2:
                    self.rest = end
                    break
                position += 2
                self._state = _SIZE
                continue
            limit = MAX_LINE if self._state == _SIZE else MAX_TRAILERS - self._trailers
            line_end = data.find(b"\n", position, position + limit)
            if line_end < 0:
                self.rest = data[position:]
                if len(self.rest) >= limit:
                    raise HttpError(400 if self._state == _SIZE else 431, "line too long in a chunked body")
                break
            self._line(data[position : line_end + 1])
            position = line_end + 1
        else:
            self.rest = data[position:]
        return b"".join(pieces)

    def _line(self, line: bytes) -> None:
        if line[-2:] != b"\r\n" or line[:-2].translate(None, _LINE_BYTES):
            raise HttpError(400, "malformed line in a chunked body")
        line = line[:-2]
        if self._state == _SIZE:
            self._size(line)
        elif not line:
            self._state = _DONE
            self.done = True
        else:
            self._trailer(line)

    def _size(self, line: bytes) -> None:
        digits, semicolon, extension = line.partition(b";")
        if semicolon:
            digits = digits.rstrip(b" \t")  # whitespace (BWS) is allowed only before the semicolon of an extension
        if not digits or len(digits) > 15 or digits.translate(None, _HEX) or (semicolon and not extension.strip()):
            raise HttpError(400, "malformed chunk size")
        self._left = int(digits, 16)
        self._state = _DATA if self._left else _TRAILER

    def _trailer(self, line: bytes) -> None:
        self._trailers += len(line) + 2
        name, colon, _ = line.partition(b":")
        if not colon or not name or name.translate(None, _TOKEN):
            raise HttpError(400, "malformed trailer field")
