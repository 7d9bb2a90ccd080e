"""What a server is told on its command line, and the limits that it keeps as one on the open network must."""

from __future__ import annotations

from workloads.errors import UsageError


class Settings:
    """One attribute for each option. Times are in seconds unless said otherwise."""

    __slots__ = (
        "body_time", "form", "grace", "header_time", "host", "idle_time", "linger_time", "max_body", "max_connections",
        "per", "port", "rpc_latency", "rpc_spread", "rpc_timeout", "workers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.host = "127.0.0.1"  # IPv4 address to listen on
        self.port = 8080  # TCP port to listen on; 0 lets the kernel choose
        self.workers = 0  # worker threads; 0 for the model's own default
        self.per = "connection"  # fork: a child for each `connection` or `request`
        self.form = "named"  # callback: /chain with `named` functions or as a `closure`
        self.max_connections = 20000  # open at once; above it a client gets 503
        self.max_body = 1048576  # bytes of a collected body; /echo streams and has no limit
        self.header_time = 10.0  # for a head to arrive
        self.body_time = 30.0  # for a body to arrive, or between two pieces of a streamed one
        self.idle_time = 60.0  # between two requests, and for a client to read what it asked for
        self.linger_time = 2.0  # to read away what a refused client still sends
        self.grace = 5.0  # for running requests to finish after SIGTERM
        self.rpc_latency = 0.0  # milliseconds that each of the services A, B and C takes
        self.rpc_spread = 0.0  # milliseconds more or less, evenly spread
        self.rpc_timeout = 2.0  # for a service to answer


def parse(arguments: list[str]) -> Settings:
    """Read `--name value` pairs, without argparse, which would cost 10 ms at every start.

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
    if not 0 <= number < 1e9:  # this refuses nan too
        raise UsageError(f"{name} {value!r} is not a number of zero or more")
    return number


def _options() -> str:
    return " ".join("--" + name.replace("_", "-") for name in Settings.__slots__)
