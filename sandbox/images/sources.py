"""Choose the mirror of the packages: the user's, else the host's apt sources, else mmdebstrap's default.

Both formats of sources.list(5) are read. Only Debian's own archive for the recipe's suite (with its -updates and
-security) is used, so that no package of a third party gets into the root filesystem.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import ImageError

MIRROR_ENV = "SANDBOX_APT_MIRROR"
APT_DIR = Path("/etc/apt")
APT_LISTS = Path("/var/lib/apt/lists")
COMPONENT = "main"
ORIGIN = "Debian"

_POCKETS = ("", "-updates", "-security")

# The host's settings for reaching its mirrors, and for the age of their indices, apply to the build as well.
_BUILD_SETTINGS = re.compile(
    r"Acquire::(https?::(Proxy|Proxy-Auto-Detect|CAInfo|CAPath)|https?::Proxy::.+|Retries|ForceIPv[46]"
    r"|Check-Valid-Until|Check-Date)",
    re.IGNORECASE,
)

Stanza = dict[str, str]
"""One stanza of a deb822 source; keys in lower case."""


@dataclass(frozen=True, slots=True)
class Mirrors:
    """The mirrors for mmdebstrap.

    Attributes:
        arguments: its MIRROR arguments; empty for its own default.
        sources: deb822 text for a file; empty if `arguments` are enough.
        origin: where this was found, for people.
    """

    arguments: tuple[str, ...]
    sources: str
    origin: str


def choose(suite: str, architecture: str, apt_dir: Path = APT_DIR, lists: Path = APT_LISTS) -> Mirrors:
    """Choose the mirrors of a suite.

    Raises:
        ImageError: SANDBOX_APT_MIRROR is neither a URL, nor a one-line source, nor a file.
    """
    named = os.environ.get(MIRROR_ENV, "").strip()
    if named:
        if not (re.match(r"[a-z+]+://\S+$", named) or named.startswith("deb ") or Path(named).is_file()):
            raise ImageError(
                f"{MIRROR_ENV}={named!r} is not a mirror",
                "give a URL, a line that starts with 'deb ', or a file in the format of sources.list(5)",
            )
        return Mirrors((named,), "", MIRROR_ENV)
    kept = [
        usable
        for stanza in _host_stanzas(apt_dir)
        if (usable := _for_suite(stanza, suite, architecture, lists)) is not None
    ]
    # Its updates alone are not enough.
    if any(suite in stanza["suites"].split() for stanza in kept):
        return Mirrors((), "\n".join(_format(stanza) for stanza in kept), f"the host's {apt_dir}")
    return Mirrors((), "", "mmdebstrap's default")


def apt_options() -> list[str]:
    """Return the host's apt settings for reaching a mirror, in the syntax of apt.conf(5).

    Raises:
        ImageError: apt-config cannot be run.
    """
    try:
        done = subprocess.run(
            ["apt-config", "dump", "--format", "%f %v%n"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ImageError(f"apt-config failed: {error}", "images are built on Debian and its derivatives") from error
    return build_settings(done.stdout.splitlines())


def build_settings(lines: Iterable[str]) -> list[str]:
    """Select the settings that apply to the build from apt-config's `name value` lines, as apt.conf(5) statements."""
    return [
        f'{name} "{value}";'
        for name, _, value in (line.partition(" ") for line in lines)
        if value and '"' not in value and _BUILD_SETTINGS.fullmatch(name)
    ]


def parse_deb822(text: str) -> Iterator[Stanza]:
    """Parse the stanzas of a .sources file (deb822(5)): comments are dropped, continuation lines kept."""
    stanza: Stanza = {}
    key = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza, key = {}, ""
        elif line[0] in " \t":
            if key:
                stanza[key] += "\n" + line
        else:
            name, _, value = line.partition(":")
            key = name.strip().lower()
            stanza[key] = value.strip()


def parse_one_line(text: str) -> Iterator[Stanza]:
    """Parse the entries of a .list file (sources.list(5), one-line style) into stanzas."""
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        match = re.fullmatch(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+\S+)*)", line)
        if not match:
            continue
        stanza = {"types": "deb", "uris": match[2], "suites": match[3], "components": match[4].strip()}
        for option in (match[1] or "").split():
            name, _, value = option.partition("=")
            # The one-line names differ from the field names only here (sources.list(5), "Options").
            field = {"arch": "architectures", "lang": "languages", "target": "targets"}.get(name, name)
            stanza[field.lower()] = value.replace(",", " ")
        yield stanza


def _host_stanzas(apt_dir: Path) -> Iterator[Stanza]:
    parts = apt_dir / "sources.list.d"
    for path in [apt_dir / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it does not exist, or we may not read it
        yield from (parse_deb822 if path.suffix == ".sources" else parse_one_line)(text)


def _for_suite(stanza: Stanza, suite: str, architecture: str, lists: Path) -> Stanza | None:
    """Return the part of a stanza that is for the suite and from Debian's archive; None if there is none."""
    architectures = stanza.get("architectures", "").split()
    if (
        "deb" not in stanza.get("types", "").split()
        or stanza.get("enabled", "yes").lower() in ("no", "false", "0", "off", "without", "disable")
        or COMPONENT not in stanza.get("components", "").split()
        or (architectures and architecture not in architectures)
    ):
        return None
    wanted = [name for name in stanza.get("suites", "").split() if name in {suite + pocket for pocket in _POCKETS}]
    signed_by = stanza.get("signed-by", "")
    wanted = [name for name in wanted if _is_debian(stanza.get("uris", ""), name, signed_by, lists)]
    if not wanted:
        return None
    dropped = ("architectures", "languages", "targets", "enabled")
    kept = {key: value for key, value in stanza.items() if key not in dropped and not key.startswith("x-")}
    return kept | {"types": "deb", "suites": " ".join(wanted), "components": COMPONENT}


def _is_debian(uris: str, suite: str, signed_by: str, lists: Path) -> bool:
    """Return whether a repository is Debian's archive, by its Release file if apt has it, else by its key."""
    for uri in uris.split():
        # apt's name of a list: the URI without its scheme, with '/' as '_' (apt's URItoFileName).
        stem = re.sub(r"^[a-z+]+://(?:[^/@]*@)?", "", uri).rstrip("/").replace("_", "%5f").replace("/", "_")
        for release in (f"{stem}_dists_{suite}_InRelease", f"{stem}_dists_{suite}_Release"):
            try:
                text = (lists / release).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            match = re.search(r"^Origin: *(.*)$", text, re.MULTILINE)
            return match is not None and match[1].strip() == ORIGIN
    return not signed_by or "debian-archive" in signed_by


def _format(stanza: Stanza) -> str:
    return "".join(f"{key.title()}: {value}\n" for key, value in stanza.items())
