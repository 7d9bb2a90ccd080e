"""Test what can be found out about a domain without libvirt, and a connection across a restart of libvirtd."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.isolation.vm import domain


@pytest.mark.parametrize(
    ("name", "ident"),
    [
        ("sbx-0123456789ab", "0123456789ab"),
        ("sbx-0123456789AB", None),
        ("sbx-0123456789ab0", None),
        ("0123456789ab", None),
        ("web", None),
        ("sbx-", None),
    ],
)
def test_whose_domain(name: str, ident: str | None) -> None:
    assert domain.ident_of(name) == ident


def test_logs_of_others_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "LOG_DIR", tmp_path)
    for name in ("sbx-0123456789ab.log", "sbx-0123456789ab.log.0", "sbx-ffffffffffff.log", "sbx-web.log", "web.log"):
        (tmp_path / name).touch()
    assert [path.name for path in domain.log_files("0123456789ab")] == [
        "sbx-0123456789ab.log",
        "sbx-0123456789ab.log.0",
    ]
    assert len(domain.log_files()) == 3


def test_no_pid_where_there_is_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "PID_DIR", tmp_path)
    assert domain.qemu_pid("0123456789ab") is None
    (tmp_path / "sbx-0123456789ab.pid").write_text("17\n")
    assert domain.qemu_pid("0123456789ab") == 17
    (tmp_path / "sbx-0123456789ab.pid").write_text("")
    assert domain.qemu_pid("0123456789ab") is None


STATUS = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST. Changes to this xml configuration should be made using:
  virsh edit sbx-0123456789ab
or other application using the libvirt API.
-->

<domstatus state='{}' reason='user' pid='17'>
"""


@pytest.mark.parametrize(("state", "paused"), [("paused", True), ("running", False), ("shutdown", False)])
def test_paused_as_libvirt_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, paused: bool) -> None:
    monkeypatch.setattr(domain, "PID_DIR", tmp_path)
    assert not domain.is_paused("0123456789ab")
    (tmp_path / "sbx-0123456789ab.xml").write_text(STATUS.format(state))
    assert domain.is_paused("0123456789ab") is paused
