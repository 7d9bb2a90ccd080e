"""The options of a server, among them the limits that any server on an open network needs."""

from __future__ import annotations

from workloads.errors import UsageError


class Settings:
    """The options of a server, an attribute each. Times are in seconds unless stated otherwise."""

    __slots__ = (
        "body_time", "form", "grace", "header_time", "host", "idle_time", "linger_time", "max_body", "max_connections",
        "per", "port", "rpc_latency", "rpc_spread", "rpc_timeout", "workers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.host = "127.0.0.1"  # IPv4 address to listen on
        self.port = 8080  # TCP port to listen on; 0 lets the kernel choose
        self.workers = 0  # worker threads; 0 for the model's default
        self.per = "connection"  # fork: a child for each `connection` or `request`
        self.form = "named"  # callback: /chain with `named` functions or as a `closure`
        self.max_connections = 20000  # maximum of open connections; further clients get 503
        self.max_body = 1048576  # maximum bytes of a body that is collected; /echo streams, and has no limit
        self.header_time = 10.0  # limit for a head to arrive
        self.body_time = 30.0  # limit for a body to arrive, or between two pieces of a streamed one
        self.idle_time = 60.0  # limit between two requests, and for a client to read its response
        self.linger_time = 2.0  # limit for discarding what a refused client still sends
        self.grace = 5.0  # limit for running requests to finish after SIGTERM
        self.rpc_latency = 0.0  # latency of each of the services A, B and C, in milliseconds
        self.rpc_spread = 0.0  # the latency varies evenly by this many milliseconds in both directions
        self.rpc_timeout = 2.0  # limit for a service to reply


def parse(arguments: list[str]) -> Settings:
    """Parse `--name value` pairs. argparse is not used, because it would take 10 ms at every start.

    Raises:
        UsageError: an unknown option, a missing or malformed value.
    """
    settings = Settings()
    words = iter(arguments)
    for word in words:
        name, given, value = word.partition("=")
        attribute = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or attribute not in Settings.__slots__:
            raise UsageError(f"unknown argument {word!r}; the options are {_options()}")
        if not given:
            value = next(words, "")
        setattr(settings, attribute, _convert(name, value, getattr(settings, attribute)))
    if settings.per not in ("connection", "request"):
        raise UsageError(f"--per {settings.per!r}: `connection` or `request`")
    if settings.form not in ("named", "closure"):
        raise UsageError(f"--form {settings.form!r}: `named` or `closure`")
    if settings.port > 65535:
        raise UsageError(f"--port {settings.port} is not a TCP port: 0 to 65535")
    return settings


def _convert(name: str, value: str, default: object) -> object:
    if isinstance(default, str):
        if not value:
            raise UsageError(f"{name} needs a value")
        return value
    try:
        number = int(value) if isinstance(default, int) else float(value)
    except ValueError:
        number = -1
    if not 0 <= number < 1e9:  # false for nan too
        raise UsageError(f"{name} {value!r} is not a number of zero or more")
    return number


def _options() -> str:
    return " ".join("--" + name.replace("_", "-") for name in Settings.__slots__)
