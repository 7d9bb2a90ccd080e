"""Import the Docker form of the root filesystem into the daemon, find it there, and remove it.

The import is one streamed request: if the builder dies, the daemon gets an incomplete body and keeps nothing.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from sandbox.errors import BusyError, EngineError
from sandbox.host.docker import Engine, RefusalError

REPOSITORY = "sandbox"
LABEL_DIGEST = "org.sandbox.image.digest"
LABEL_ROOTFS = "org.sandbox.image.rootfs"
_BLOCK = 1024 * 1024
"""Bytes of an archive that are sent at a time; the SDK's default of 16 KiB would double the time of an import."""
_SLOW = 600
"""Seconds that a daemon may take for one step of an import or a removal."""
_NOT_FOUND = 404
_CONFLICT = 409


def reference(digest: str) -> str:
    """Return the image's name in the daemon."""
    return f"{REPOSITORY}:{digest[:12]}"


def find(digest: str) -> dict[str, Any] | None:
    """Get the daemon's description of the image (ImageInspect), or None if there is no such image.

    Raises:
        UnavailableError: the daemon does not answer.
        EngineError: the daemon reports an error.
    """
    found = Engine().look(f"/images/{quote(reference(digest))}/json", "the image cannot be looked up")
    labels = ((found or {}).get("Config") or {}).get("Labels") or {}
    return found if labels.get(LABEL_DIGEST) == digest else None


def images() -> list[dict[str, Any]]:
    """Return all our images in the daemon (ImageSummary).

    Raises:
        UnavailableError, EngineError: as `find`.
    """
    with Engine().talking("the images cannot be listed") as api:
        found: list[dict[str, Any]] = api.images(filters={"label": [LABEL_DIGEST]})
    return found


def load(root: Path, digest: str, rootfs_digest: str, config: Mapping[str, Any], user: int) -> None:
    """Import a root filesystem as an image with command, user, environment and labels.

    Args:
        root: directory of the root filesystem.
        digest: digest of the Docker form, which becomes the tag and a label.
        rootfs_digest: digest of the root filesystem, which becomes a label.
        config: the table `docker` of the recipe.
        user: user id of the command.

    Raises:
        UnavailableError: the daemon does not answer.
        EngineError: the daemon refused the import, and nothing of it is left.
    """
    settings = changes(digest, rootfs_digest, config, user)
    with subprocess.Popen(
        ["tar", "--create", "--sort=name", "--numeric-owner", "--xattrs", "--file=-", "--directory", str(root), "."],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as archive:
        try:
            with Engine().talking("dockerd did not take the image") as api:
                api.timeout = _SLOW
                said = api.import_image_from_stream(
                    _blocks(archive.stdout), repository=REPOSITORY, tag=digest[:12], changes=settings
                )
        finally:
            archive.kill()  # has no effect after its end; before it, nothing reads its output any more
        words = archive.stderr.read().decode(errors="replace").strip() if archive.stderr else ""
    # The status is sent before the archive is read, so a later error is a line of the body.
    for line in str(said).splitlines():
        if line.strip() and (problem := _object(line).get("error")):
            raise EngineError(f"dockerd did not take the image: {problem}")
    if archive.returncode != 0:
        remove(reference(digest))
        raise EngineError(f"the root filesystem could not be read: {words or 'tar failed'}")


def _blocks(archive: IO[bytes] | None) -> Iterator[bytes]:
    while archive is not None and (block := archive.read(_BLOCK)):
        yield block


def changes(digest: str, rootfs_digest: str, config: Mapping[str, Any], user: int) -> list[str]:
    """Return the image's configuration as Dockerfile instructions, as an import takes them."""
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
    """Remove one of our images. Returns False if there is no such image.

    Raises:
        BusyError: a container uses it.
        UnavailableError, EngineError: as `find`.
    """
    try:
        with Engine().talking(f"the image {name} cannot be removed") as api:
            api.timeout = _SLOW
            api.remove_image(name)
    except RefusalError as error:
        if error.status == _NOT_FOUND:
            return False
        if error.status == _CONFLICT:
            raise BusyError(f"docker keeps {name}: {error.reason}", "remove that container first") from error
        raise
    return True


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
