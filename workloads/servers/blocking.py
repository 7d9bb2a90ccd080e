"""Blocking: a fixed pool of threads, and each blocks at every call until its request is done.

A thread that takes a request keeps it to the end. At each call of a service it sits and waits, so a pool of N threads has
N requests under way at most, and the rest queue up while the processor idles: throughput is threads ÷ latency. `callback`
and `coroutine` lift that bound.
"""

from __future__ import annotations

from select import EPOLLIN, EPOLLONESHOT

from workloads.blocking_connection import BlockingConnection
from workloads.loop import TICK, EventLoop
from workloads.net import Acceptor, refuse
from workloads.pool import Pool
from workloads.signals import on_termination

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.net import Socket

SECTION = "2.8.8"

PICTURE = """
 requests    queue     N threads
                      +----------------------------------------------------+
  o o o o -> ||||| -> | 1: A B [user . . .] C D [query . . .] E F [stock . |
                      | 2: A B [user . . .] C D [query . .                 |
                      | N: A B [user . .        (. = blocked, CPU idle)    |
                      +----------------------------------------------------+
"""
