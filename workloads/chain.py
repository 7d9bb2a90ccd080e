"""The RPC chain of the notes: A B [user] C D [query] E F [stock] G H.

The letters are work that the handler does itself; each service is asked with what the one before it answered. The
class holds what a handler has to remember from one call to the next. In straight-line code (blocking, coroutine) that
is a local variable; cut into callbacks, it has to be handed on (named functions) or be held by a closure.
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
    """One request's way through the chain.

    Attributes:
        user: whom it is about.
        steps: what has been done, in order.
        contributions: what each service has answered.
    """

    __slots__ = ("checksum", "contributions", "steps", "user")

    def __init__(self, request: Request) -> None:
        self.user = request.integer(b"user", 1, 0, 2**31 - 1)
        self.steps: list[str] = []
        self.contributions: dict[str, Message] = {}
        self.checksum = self.user

    def work(self, letters: str) -> None:
        """A little work of the handler's own for each letter; a step left out or swapped shows in the checksum."""
        for letter in letters:
            for _ in range(_WORK_ROUNDS):
                self.checksum = (self.checksum * 31 + ord(letter)) % 4294967291
            self.steps.append(letter)

    def add(self, service: str, reply: Message) -> None:
        """Note a service's answer."""
        self.steps.append(service)
        self.contributions[service] = reply

    def question(self) -> Message:
        """What the next service needs to know: the last answer, or at the start the user."""
        return self.contributions[self.steps_of_services()[-1]] if self.contributions else {"user": self.user}

    def steps_of_services(self) -> list[str]:
        """The services asked so far, in order."""
        return list(self.contributions)

    def response(self) -> Response:
        """The answer of the whole chain."""
        from json import dumps

        document = {
            "user": self.user,
            "steps": self.steps,
            "services": self.contributions,
            "checksum": self.checksum,
        }
        return Response(dumps(document).encode("ascii") + b"\n", type=JSON)


def rpc_failure(error: Exception) -> HttpError:
    """What the client of `/chain` is told when a call fails."""
    return HttpError(getattr(error, "status", 502), str(error))
