"""The Docker form: puts the root filesystem into the daemon, finds it there, removes it.

It speaks the Engine API (https://docs.docker.com/reference/api/engine/) with the standard library: four requests do not
justify the 0.2 s of importing the SDK, and the command line client may be absent where a daemon is. Paths are without
a version, so that the daemon's own applies: the newest refuse the versions that the oldest speak.

The import is one streamed request: if the builder dies, the daemon sees its body cut short and keeps nothing.
"""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from sandbox.errors import BusyError, EngineError, UnavailableError
from sandbox.images.endpoint import Endpoint

REPOSITORY = "sandbox"
LABEL_DIGEST = "org.sandbox.image.digest"
LABEL_ROOTFS = "org.sandbox.image.rootfs"
QUICK = 10.0
"""Seconds that a daemon may take for a look-up."""
SLOW = 600.0
"""Seconds that a daemon may take for one step of an import."""


def reference(digest: str) -> str:
    """The image's name in the daemon."""
    return f"{REPOSITORY}:{digest[:12]}"


def find(digest: str) -> dict[str, Any] | None:
    """What the daemon says of the image (ImageInspect); None when it has none.

    Raises:
        UnavailableError: no daemon answers.
        EngineError: it answers with an error.
    """
    status, body = _request("GET", f"/images/{quote(reference(digest))}/json")
    if status == 404:
        return None
    _expect(status, body, 200)
    found = _object(body)
    labels = (found.get("Config") or {}).get("Labels") or {}
    return found if labels.get(LABEL_DIGEST) == digest else None


def images() -> list[dict[str, Any]]:
    """Every image of ours in the daemon (ImageSummary).

    Raises:
        UnavailableError, EngineError: as `find`.
    """
    query = urlencode({"filters": json.dumps({"label": [LABEL_DIGEST]})})
    status, body = _request("GET", f"/images/json?{query}")
    _expect(status, body, 200)
    found = json.loads(body)
    return [item for item in found if isinstance(item, dict)]


def load(root: Path, digest: str, rootfs_digest: str, config: Mapping[str, Any], user: int) -> None:
    """Import a root filesystem as an image with command, user, environment and labels.

    Args:
        root: the directory.
        digest: of the Docker form; becomes the tag and a label.
        rootfs_digest: becomes a label.
        config: the recipe's table `docker`.
        user: the id that the command runs as.

    Raises:
        UnavailableError: no daemon answers.
        EngineError: it refused; nothing is left in it.
    """
    query = [("fromSrc", "-"), ("repo", REPOSITORY), ("tag", digest[:12]), ("message", "sandbox images build")]
    query += [("changes", change) for change in changes(digest, rootfs_digest, config, user)]
    with subprocess.Popen(
        ["tar", "--create", "--sort=name", "--numeric-owner", "--xattrs", "--file=-", "--directory", str(root), "."],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as archive:
        try:
            status, body = _request("POST", f"/images/create?{urlencode(query)}", body=archive.stdout, timeout=SLOW)
        finally:
            archive.kill()  # after its end this does nothing; before it, nobody reads on
        words = archive.stderr.read().decode(errors="replace").strip() if archive.stderr else ""
    _expect(status, body, 200)
    # The status is sent before the archive is read: what goes wrong later is a line of the body.
    for line in body.splitlines():
        if line.strip() and (problem := _object(line).get("error")):
            raise EngineError(f"docker did not take the image: {problem}")
    if archive.returncode != 0:
        remove(reference(digest))
        raise EngineError(f"the root filesystem could not be read: {words or 'tar failed'}")


def changes(digest: str, rootfs_digest: str, config: Mapping[str, Any], user: int) -> list[str]:
    """The image's configuration as Dockerfile instructions, which is what an import takes."""
    return [
        f"CMD {json.dumps(list(config['command']))}",
        f"USER {user}:{user}",
        f"WORKDIR {config['working_directory']}",
        f"EXPOSE {config['port']}/tcp",
        *(f"ENV {name}={json.dumps(value)}" for name, value in sorted(config["environment"].items())),
        f"LABEL {LABEL_DIGEST}={digest}",
        f"LABEL {LABEL_ROOTFS}={rootfs_digest}",
    ]


def remove(name: str) -> bool:
    """Remove an image of ours; False when there is none.

    Raises:
        BusyError: a container uses it.
        UnavailableError, EngineError: as `find`.
    """
    status, body = _request("DELETE", f"/images/{quote(name)}", timeout=SLOW)
    if status == 404:
        return False
    if status == 409:
        raise BusyError(f"docker keeps {name}: {_said(body)}", "remove that container first")
    _expect(status, body, 200)
    return True


def _request(method: str, path: str, *, body: Any = None, timeout: float = QUICK) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/x-tar", "Transfer-Encoding": "chunked"} if body is not None else {}
    endpoint = Endpoint.current()
    connection = endpoint.connect(timeout)
    try:
        connection.request(method, path, body=body, headers=headers, encode_chunked=body is not None)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(
            f"the docker daemon at {endpoint.host} does not answer: {error}", "sandbox doctor --fix starts it"
        ) from error
    finally:
        connection.close()


def _expect(status: int, body: bytes, wanted: int) -> None:
    if status != wanted:
        raise EngineError(f"docker answered {status}: {_said(body)}")


def _said(body: bytes) -> str:
    return str(_object(body).get("message", "")) or body.decode(errors="replace").strip()


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
