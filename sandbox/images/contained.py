"""Run a build tool that must not outlive the builder, nor leave a mount behind.

The tool runs in new mount and pid namespaces (unshare(1)): when their first process ends, the kernel ends all others
and removes their mounts. The first process ends with the builder (prctl(2), PR_SET_PDEATHSIG), even if that is killed
by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sandbox.errors import UnavailableError

WRAPPER = (
    "setpriv", "--pdeathsig", "KILL", "--",
    "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--",
)  # fmt: skip
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def run(
    argv: Sequence[str],
    *,
    lease: int,
    log: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
) -> tuple[int, list[str]]:
    """Run a command and wait for it.

    The calling thread must stay alive until then: PR_SET_PDEATHSIG watches the thread, not the process.

    Args:
        argv: the command.
        lease: a locked descriptor that the command inherits; the lock is held while any of its processes lives.
        log: a file to append its output to.
        environment: added to PATH and the proxy variables; nothing else is passed on.
        on_line: called with each line of its output.

    Returns:
        Its exit code, as in subprocess, and its last lines.

    Raises:
        UnavailableError: setpriv or unshare (util-linux) is not installed.
    """
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        process = subprocess.Popen(
            [*WRAPPER, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", **passed_on, **environment},
            pass_fds=(lease,),
            start_new_session=True,  # Ctrl-C reaches only the builder, which then ends the tool
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise UnavailableError(f"{error.filename} is not installed", "apt-get install util-linux") from error
    tail: list[str] = []
    try:
        with log.open("a", encoding="utf-8") as file:
            log.chmod(0o600)  # a mirror's address may contain a password
            file.write(f"$ {' '.join(argv)}\n")
            for raw in process.stdout or ():
                file.write(raw)
                line = raw.rpartition("\r")[2].rstrip() if "\r" in raw else raw.rstrip()
                tail = [*tail[-99:], line]
                on_line(line)
        return process.wait(), tail
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the command if it still runs, and reap it."""
    if process.poll() is None:
        # First the namespace's init, with which the kernel ends the whole namespace; unshare(1) then reaps it and
        # exits. If unshare ended first, the init would be left as a zombie to process 1 of this host.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with suppress(OSError, subprocess.TimeoutExpired):
            for child in children.read_text(encoding="ascii").split():
                os.kill(int(child), signal.SIGKILL)
                process.wait(timeout=5)
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()
