"""Fuzz the parser path with broken requests: `python -m tests.workloads.fuzz_protocol --inputs 1000000`.

One input is a sequence of bytes. `one_input` feeds it to a Protocol, whole and in fragments, and checks what must hold
for any bytes. The generator mutates and splices the shapes that the tests know; each input can be made again from the
seed and its number alone.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from tests.workloads.shapes import BAD_HEADS, GOOD_HEADS, PIPELINE
from workloads.application import Application
from workloads.handlers import routes
from workloads.http import protocol as protocol_module
from workloads.http import response as response_module
from workloads.http.protocol import HIGH_WATER, MAX_HEAD, Protocol
from workloads.http.response import Response
from workloads.rpc.services import Services
from workloads.settings import Settings

MAX_INPUT = 40_000
"""Maximum bytes of an input; twice the limit of a head, so that the limits are reached."""

_APP = Application("fuzz", Settings(), Services(), routes)
_ANSWER = Response(b"answer\n")
_CORPUS = [head for _, head, _ in BAD_HEADS] + [head for _, head in GOOD_HEADS] + [PIPELINE]
_TOKENS = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b"\0", b"\xff", b";", b",", b"%", b"%41", b"0", b"1",
    b"a", b"fffffffffffffff", b"99999999999999999", b"GET ", b"HEAD ", b"POST ", b"/", b"/echo", b"*", b"http://a/",
    b" HTTP/1.1", b" HTTP/1.0", b"Host: t\r\n", b"Content-Length: 1\r\n", b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: ", b"chunked", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Connection: upgrade\r\n", b"Upgrade: x\r\n", b"Expect: 100-continue\r\n",
    b"0\r\n\r\n", b"1\r\na\r\n", b"?rounds=1", b"x" * 300, b"X: y\r\n" * 30,
]  # fmt: skip


def converse(fragments: Sequence[bytes]) -> tuple[bytes, bool]:
    """Return the answer of a connection to these bytes, and whether it ends. No handler is run."""
    connection = Protocol(_APP)
    answer = []
    for fragment in fragments:
        connection.feed(fragment)
        while True:
            while (request := connection.next_request()) is not None:
                assert connection.busy
                connection.respond(request, _ANSWER)
            answer.append(connection.output)
            drained = not connection.output
            assert len(connection.output) <= HIGH_WATER + MAX_INPUT * 2, "unbounded output"
            connection.output = b""
            if drained or not connection.pending:
                break
        assert len(connection._buffer) - connection._position <= max(MAX_HEAD + len(fragment), MAX_INPUT), (
            "unbounded input"
        )
        if connection.closing:
            assert not connection.pending, "input is kept after the end"
            break
    return b"".join(answer), connection.closing


def one_input(data: bytes, cuts: Sequence[int]) -> None:
    """Check that bytes are answered without an exception, and the same in any fragments.

    Raises:
        AssertionError: they are not.
    """
    whole, ended = converse([data])
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    parts, parts_ended = converse([data[start:end] for start, end in pairwise(edges) if start < end])
    # 100 Continue depends on whether the body has arrived, and so on the fragments; the rest must agree.
    continue_line = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert _comparable(whole, continue_line) == _comparable(parts, continue_line), "fragments change the answer"
    assert ended == parts_ended, "fragments change the end"


def _comparable(answer: bytes, continue_line: bytes) -> bytes:
    """Return the answer without the parts that may differ: 100 Continue, and the chunks of a streamed body."""
    answer = answer.replace(continue_line, b"")
    if b"Transfer-Encoding: chunked" not in answer:
        return answer
    pieces = []
    while b"Transfer-Encoding: chunked" in answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        if b"Transfer-Encoding: chunked" not in head:
            size = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            pieces += [head, rest[:size]]
            answer = rest[size:]
            continue
        pieces.append(head)
        while True:
            line, _, rest = rest.partition(b"\r\n")
            size = int(line or b"0", 16)
            pieces.append(rest[:size])
            if not size:
                answer = rest[2:]
                break
            rest = rest[size + 2 :]
    return b"".join([*pieces, answer])


def make(chance: random.Random) -> tuple[bytes, list[int]]:
    """Return a random input, and the positions at which to cut it."""
    data = bytearray(chance.choice(_CORPUS))
    while chance.random() < 0.3:
        data += chance.choice(_CORPUS)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] = chance.randrange(256)
        elif kind == 1:
            data[at:at] = chance.choice(_TOKENS)
        elif kind == 2:
            del data[at : at + chance.choice((1, 1, 2, 8, 64))]
        elif kind == 3:
            end = at + chance.randrange(64)
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at : at + chance.randrange(8)] = chance.choice(_TOKENS)
        else:
            other = chance.choice(_CORPUS)
            data[at:] = other[chance.randrange(len(other) + 1) :]
    cuts = [chance.randrange(MAX_INPUT) for _ in range(chance.choice((1, 1, 2, 5)))]
    return bytes(data[:MAX_INPUT]), cuts


def run(inputs: int, seed: int, *, report_every: int = 0) -> None:
    """Make and check inputs number 0 to `inputs` - 1.

    Raises:
        AssertionError: with the input that did it.
    """
    with frozen_clocks():
        _run(inputs, seed, report_every)


@contextmanager
def frozen_clocks() -> Iterator[None]:
    """Stop the clock, so that no deadline passes and the Date field does not change between two answers."""
    real = vars(protocol_module)["monotonic"], vars(response_module)["time"]
    vars(protocol_module)["monotonic"], vars(response_module)["time"] = (lambda: 0.0), (lambda: 1e9)
    try:
        yield
    finally:
        vars(protocol_module)["monotonic"], vars(response_module)["time"] = real


def _run(inputs: int, seed: int, report_every: int) -> None:
    begin = time.monotonic()
    for number in range(inputs):
        data, cuts = make(random.Random(f"{seed}/{number}"))
        started = time.monotonic()
        try:
            one_input(data, cuts)
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, input {number}: {error!r} for {len(data)} bytes, {data[:200]!r}…"
            ) from error
        assert time.monotonic() - started < 5, f"seed {seed}, input {number}: a hang"
        if report_every and not (number + 1) % report_every:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            rate = (number + 1) / (time.monotonic() - begin)
            print(f"{number + 1} inputs, {rate:.0f}/s, peak {peak} MiB", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        run(arguments.inputs, arguments.seed, report_every=100_000)
    except AssertionError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
