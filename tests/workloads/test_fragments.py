"""Properties of the parser path: fragments do not matter, and no bytes break it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workloads import fuzz_protocol
from tests.workloads.server import Server, read_all, statuses
from tests.workloads.shapes import BAD_HEADS, GOOD_HEADS, PIPELINE

_SHAPES = [head for _, head, _ in BAD_HEADS] + [head for _, head in GOOD_HEADS] + [PIPELINE]
_CUTS = st.lists(st.integers(min_value=0, max_value=fuzz_protocol.MAX_INPUT), max_size=8)


@given(data=st.lists(st.sampled_from(_SHAPES), min_size=1, max_size=4).map(b"".join), cuts=_CUTS)
@settings(max_examples=300, deadline=None)
def test_fragments_of_known_shapes_get_the_same_answer(data: bytes, cuts: list[int]) -> None:
    with fuzz_protocol.frozen_clocks():
        fuzz_protocol.one_input(data, cuts)


@pytest.mark.parametrize("shape", range(len(_SHAPES)))
def test_byte_by_byte(shape: int) -> None:
    data = _SHAPES[shape][:400]
    with fuzz_protocol.frozen_clocks():
        fuzz_protocol.one_input(data, range(len(data)))


@given(data=st.binary(max_size=300), cuts=_CUTS)
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes, cuts: list[int]) -> None:
    with fuzz_protocol.frozen_clocks():
        fuzz_protocol.one_input(data, cuts)


@given(
    lines=st.lists(
        st.sampled_from([token for token in fuzz_protocol._TOKENS if len(token) < 40]), min_size=1, max_size=30
    ),
    cuts=_CUTS,
)
@settings(max_examples=500, deadline=None)
def test_tokens_in_any_order(lines: list[bytes], cuts: list[int]) -> None:
    with fuzz_protocol.frozen_clocks():
        fuzz_protocol.one_input(b"GET / HTTP/1.1\r\nHost: t\r\n" + b"".join(lines), cuts)


def test_short_fuzz() -> None:
    """Fuzz a little, with a seed of the day; `python -m tests.workloads.fuzz_protocol` runs millions of inputs."""
    fuzz_protocol.run(20_000, seed=int(time.time()) // 86400)


def test_fragments_on_a_real_socket(server: Server) -> None:
    """Send the pipeline in small pieces, each in its own segment; also to `sequential`."""
    with server.connect() as client:
        for start in range(0, len(PIPELINE), 7):
            client.sendall(PIPELINE[start : start + 7])
            time.sleep(0.001)
        assert statuses(read_all(client)) == [200, 200, 404, 200, 200, 200]
