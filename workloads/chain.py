"""The RPC chain of the notes: A B [user] C D [query] E F [stock] G H.

A letter stands for work of the handler itself; each service is called with the reply of the one before it. The class
holds what a handler has to remember between the calls. In straight-line code (blocking, coroutine) that is a local
variable; with callbacks, it is passed on as an argument (named functions) or captured by a closure.
"""

from __future__ import annotations

from workloads.http.request import HttpError
from workloads.http.response import JSON, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.http.request import Request
    from workloads.rpc.wire import Message

_WORK_ROUNDS = 20


class Chain:
    """The progress of one request through the chain.

    Attributes:
        user: id of the user that is asked about.
        steps: the letters and services done so far, in order.
        contributions: the reply of each service.
    """

    __slots__ = ("checksum", "contributions", "steps", "user")

    def __init__(self, request: Request) -> None:
        self.user = request.integer(b"user", 1, 0, 2**31 - 1)
        self.steps: list[str] = []
        self.contributions: dict[str, Message] = {}
        self.checksum = self.user

    def work(self, letters: str) -> None:
        """Do a little work for each letter. The checksum shows a step that was left out or swapped."""
        for letter in letters:
            for _ in range(_WORK_ROUNDS):
                self.checksum = (self.checksum * 31 + ord(letter)) % 4294967291
            self.steps.append(letter)

    def add(self, service: str, reply: Message) -> None:
        """Record the reply of a service."""
        self.steps.append(service)
        self.contributions[service] = reply

    def question(self) -> Message:
        """Return the message for the next service: the last reply, or the user before the first call."""
        return self.contributions[self.steps_of_services()[-1]] if self.contributions else {"user": self.user}

    def steps_of_services(self) -> list[str]:
        """Return the services called so far, in order."""
        return list(self.contributions)

    def response(self) -> Response:
        """Return the response of the whole chain."""
        from json import dumps

        document = {
            "user": self.user,
            "steps": self.steps,
            "services": self.contributions,
            "checksum": self.checksum,
        }
        return Response(dumps(document).encode("ascii") + b"\n", type=JSON)


def rpc_failure(error: Exception) -> HttpError:
    """Return the error for the client of `/chain` after a failed call."""
    return HttpError(getattr(error, "status", 502), str(error))
