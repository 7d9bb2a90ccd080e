"""The choice of a mirror: both formats of sources.list(5), and the recognition of Debian's archive."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ImageError
from sandbox.images import sources

DEB822 = """\
Types: deb deb-src
# a comment between fields
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Architectures: amd64 i386
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""

THIRD_PARTY = """\
Types: deb
URIs: https://vendor.example/debian
Suites: bookworm
Components: main
Signed-By: /etc/apt/keyrings/vendor.gpg
"""

KEY_BLOCK = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY865UxYJKwYBBAHaRw8BAQdA
 -----END PGP PUBLIC KEY BLOCK-----
"""


@pytest.fixture(autouse=True)
def no_mirror_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sources.MIRROR_ENV, raising=False)


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "lists").mkdir()
    return tmp_path


def choose(apt: Path) -> sources.Mirrors:
    return sources.choose("bookworm", "amd64", apt / "apt", apt / "lists")


def stanzas(mirrors: sources.Mirrors) -> list[sources.Stanza]:
    return list(sources.parse_deb822(mirrors.sources))


def test_deb822_of_a_debian_host(apt: Path) -> None:
    (apt / "apt/sources.list.d/debian.sources").write_text(DEB822)
    first, second = stanzas(choose(apt))
    assert first == {
        "types": "deb",
        "uris": "http://mirror.example/debian",
        "suites": "bookworm bookworm-updates",
        "components": "main",
        "signed-by": "/usr/share/keyrings/debian-archive-keyring.gpg",
    }
    assert second["suites"] == "bookworm-security"
    assert "architectures" not in second


def test_one_line_style_of_a_debian_host(apt: Path) -> None:
    (apt / "apt/sources.list").write_text(
        "# deb http://old.example/debian bookworm main\n"
        "deb http://mirror.example/debian bookworm main contrib # the main one\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg check-valid-until=no]"
        " http://mirror.example/debian-security bookworm-security main\n"
        "deb [arch=i386] http://mirror.example/debian bookworm-updates main\n"
    )
    first, second = stanzas(choose(apt))
    assert first["suites"] == "bookworm"
    assert first["components"] == "main"
    assert second["signed-by"].endswith("debian-archive-keyring.gpg")
    assert second["check-valid-until"] == "no"


def test_third_parties_stay_out(apt: Path) -> None:
    (apt / "apt/sources.list.d/debian.sources").write_text(DEB822)
    (apt / "apt/sources.list.d/vendor.sources").write_text(THIRD_PARTY)
    assert "vendor" not in choose(apt).sources


def test_what_apt_knows_of_a_repository_decides(apt: Path) -> None:
    # A company's mirror signed by its own key is Debian if its Release file says so, and the other way round.
    (apt / "apt/sources.list.d/vendor.sources").write_text(THIRD_PARTY)
    assert choose(apt).sources == ""
    release = apt / "lists/vendor.example_debian_dists_bookworm_InRelease"
    release.write_text("-----BEGIN PGP SIGNED MESSAGE-----\nOrigin: Debian\nSuite: oldstable\n")
    assert "vendor.example" in choose(apt).sources
    release.write_text("Origin: Vendor\n")
    assert choose(apt).sources == ""
    (apt / "apt/sources.list").write_text("deb http://vendor.example/debian bookworm main\n")
    assert choose(apt).sources == ""


def test_a_host_of_another_kind_uses_the_default(apt: Path) -> None:
    (apt / "apt/sources.list.d/ubuntu.sources").write_text(
        "Types: deb\nURIs: http://mirror.example/ubuntu\nSuites: noble noble-updates\nComponents: main universe\n"
        "Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n"
    )
    assert choose(apt) == sources.Mirrors((), "", "mmdebstrap's default")


def test_updates_without_the_suite_do_not_do(apt: Path) -> None:
    (apt / "apt/sources.list").write_text("deb http://mirror.example/debian bookworm-updates main\n")
    assert choose(apt).sources == ""


def test_disabled_sources_stay_out(apt: Path) -> None:
    (apt / "apt/sources.list.d/debian.sources").write_text("Enabled: no\n" + DEB822.partition("\n\n")[0])
    assert choose(apt).sources == ""


def test_an_embedded_key_is_kept(apt: Path) -> None:
    (apt / "apt/sources.list.d/debian.sources").write_text(KEY_BLOCK)
    (apt / "lists/mirror.example_debian_dists_bookworm_InRelease").write_text("Origin: Debian\n")
    text = choose(apt).sources
    assert "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n" in text
    assert stanzas(choose(apt))[0]["signed-by"].count("\n") == 4


@pytest.mark.parametrize(
    "value",
    ["http://mirror.example/debian", "https://mirror.example/x", "deb http://mirror.example/debian bookworm main"],
)
def test_a_named_mirror_comes_first(apt: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    (apt / "apt/sources.list.d/debian.sources").write_text(DEB822)
    monkeypatch.setenv(sources.MIRROR_ENV, value)
    assert choose(apt) == sources.Mirrors((value,), "", sources.MIRROR_ENV)


@pytest.mark.parametrize("value", ["mirror", "/does/not/exist", "http://", "ht tp://x", "--help"])
def test_a_mirror_that_is_none_is_refused(apt: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(sources.MIRROR_ENV, value)
    with pytest.raises(ImageError, match="is not a mirror"):
        choose(apt)


def test_the_hosts_way_to_its_mirrors_is_carried_over() -> None:
    lines = [
        "Acquire::http::Proxy http://proxy.example:3142",
        "Acquire::https::Proxy::mirror.example DIRECT",
        "Acquire::Check-Valid-Until false",
        "Acquire::Retries 3",
        "Acquire::http ",
        "Acquire::IndexTargets::deb::Packages::MetaKey x",
        "Dir::Etc::trusted trusted.gpg",
        'Acquire::http::Proxy-Auto-Detect "quoted"',
        "DPkg::Post-Invoke:: rm -rf /",
    ]
    assert sources.build_settings(lines) == [
        'Acquire::http::Proxy "http://proxy.example:3142";',
        'Acquire::https::Proxy::mirror.example "DIRECT";',
        'Acquire::Check-Valid-Until "false";',
        'Acquire::Retries "3";',
    ]


@given(st.text(alphabet=st.sampled_from("deb [=]#:\n\t/ax.-"), max_size=200))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parser in (sources.parse_deb822, sources.parse_one_line):
        for stanza in parser(text):
            assert all(isinstance(value, str) for value in stanza.values())
