"""Test the guest's configuration: quoting of any value, and the formats of the keys."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import EngineError, SpecError
from sandbox.isolation.vm import config
from sandbox.isolation.vm import guest as vm_guest
from sandbox.isolation.vm.config import Configuration

CONFIGURATION = Configuration(
    nonce="0123456789abcdef",
    hostname="web-1",
    address="198.18.2.0",
    netmask="255.255.0.0",
    pids=64,
    uid=10001,
    environment={"PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    init=("/usr/bin/printf", "%s\\0"),
    argv=("a",),
    directory="/",
    tmpfs=(("/tmp", 1 << 20, 0o1777), ("/run", 1 << 20, 0o755)),
    shm_bytes=1 << 20,
)

text = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
) | st.binary(max_size=6).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


def run_in_shell(configuration: Configuration, directory: Path, script: str) -> bytes:
    path = directory / "settings"
    path.write_bytes(configuration.settings())
    done = subprocess.run(["sh", "-c", f'. "$0"; {script}', str(path)], capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout


@settings(max_examples=40, deadline=None)
@given(st.lists(text, min_size=1, max_size=5))
def test_arguments_arrive_as_they_are(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        out = run_in_shell(replace(CONFIGURATION, argv=argv), Path(directory), "workload with_environment")
    assert out == b"".join(os.fsencode(part) + b"\0" for part in argv)


def test_the_environment_is_just_what_was_given(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "A": "x y'$(id)`id`\"\\", "EMPTY": "", "B": "-i"}
    out = run_in_shell(replace(CONFIGURATION, environment=environment), tmp_path, "with_environment env -0")
    assert dict(entry.split("=", 1) for entry in out.decode().split("\0") if entry) == environment


def test_values_are_no_code(tmp_path: Path) -> None:
    hostile = "$(touch pwned)`touch pwned`; touch pwned '"
    out = run_in_shell(replace(CONFIGURATION, hostname=hostile), tmp_path, 'printf %s "$hostname"')
    assert out.decode() == hostile
    assert not (tmp_path / "pwned").exists()


SHELL_CODE = st.text(st.sampled_from("'\"\\$`;&|<>(){}[]*?#!~=-%^ \t\n\rab\u20ac"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(hostname=SHELL_CODE, directory=SHELL_CODE, value=SHELL_CODE, argument=SHELL_CODE)
def test_nothing_that_is_asked_for_becomes_code(hostname: str, directory: str, value: str, argument: str) -> None:
    """The settings are just what was asked for, in whichever field it comes."""
    asked = replace(
        CONFIGURATION,
        hostname=hostname,
        directory=directory,
        environment={"PATH": "/usr/bin:/bin", "VALUE": value},
        init=("/usr/bin/printf", "%s\\0"),
        argv=(argument, value),
    )
    show = 'printf "%s\\0" "$nonce" "$hostname" "$directory" "$uid"; (workload with_environment)'
    with tempfile.TemporaryDirectory() as name:
        out = run_in_shell(asked, Path(name), f"{show}; with_environment env -0")
        assert os.listdir(name) == ["settings"]
    nonce, host, place, uid, first, second, *rest = out.decode().split("\0")
    assert (nonce, host, place, uid) == (CONFIGURATION.nonce, hostname, directory, str(CONFIGURATION.uid))
    assert (first, second) == (argument, value)
    assert {entry.partition("=")[0]: entry.partition("=")[2] for entry in rest[:-1]} == asked.environment


@pytest.mark.parametrize("field", ["argv", "hostname", "environment", "directory"])
def test_what_no_argument_can_hold_is_refused(field: str) -> None:
    change: dict[str, Any] = {field: {"argv": ("a\0b",), "environment": {"A": "a\0b"}}.get(field, "a\0b")}
    with pytest.raises(SpecError, match="NUL"):
        replace(CONFIGURATION, **change).settings()


def test_an_entry_is_no_option_of_env(tmp_path: Path) -> None:
    asked = replace(CONFIGURATION, environment={"PATH": "/usr/bin:/bin", "-u": "x", "--chdir": "/", "A": "1"})
    out = run_in_shell(asked, tmp_path, "with_environment env -0")
    assert set(out.decode().split("\0")) >= {"-u=x", "--chdir=/", "A=1"}


def test_fstab_mounts_parents_first() -> None:
    lines = [line.split() for line in CONFIGURATION.fstab().decode().splitlines()]
    assert all(len(line) == 6 for line in lines)
    targets = [line[1] for line in lines]
    assert targets.index("/sys") < targets.index("/sys/fs/cgroup")
    options = {line[1]: line[3].split(",") for line in lines}
    assert {"mode=1777", "size=1048576", "nosuid", "nodev"} <= set(options["/tmp"])
    assert "mode=755" in options["/run"]


def test_keys_are_fresh_and_in_their_formats() -> None:
    keys, others = config.make_keys(), config.make_keys()
    assert keys.host_private != others.host_private
    assert keys.client_private != others.client_private
    public = base64.b64decode(keys.host_public)
    assert public.startswith(b"\0\0\0\x0bssh-ed25519\0\0\0\x20")
    # dropbear's file: the type's name, then 64 bytes, of which the last 32 are the public key.
    assert len(keys.host_private) == 4 + 11 + 4 + 64
    assert keys.host_private.endswith(public[-32:])
    assert keys.client_private.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")


def test_paramiko_reads_both_keys(tmp_path: Path) -> None:
    import paramiko

    keys = config.make_keys()
    (tmp_path / "key").write_bytes(keys.client_private)
    client = paramiko.Ed25519Key.from_private_key_file(str(tmp_path / "key"))
    assert client.get_base64() == keys.client_public
    assert paramiko.Ed25519Key(data=base64.b64decode(keys.host_public)).get_base64() == keys.host_public


def test_a_machine_that_ends_during_the_handshake_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A machine that was switched off sends nothing; without checking it, the attempt would take 30 s."""
    keys = config.make_keys()
    (tmp_path / "key").write_bytes(keys.client_private)
    answers = iter([True, True])
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(vm_guest, "PORT", mute.getsockname()[1])
        guest = vm_guest.Guest("127.0.0.1", keys.host_public, tmp_path / "key", lambda: next(answers, False))
        began = time.monotonic()
        with pytest.raises(EngineError, match="does not answer over SSH"):
            guest.run("true")
    assert time.monotonic() - began < vm_guest.CONNECT_TIMEOUT / 2
    assert capfd.readouterr().err == "", "paramiko printed a traceback of its own"


def test_only_the_hosts_key_may_log_in() -> None:
    keys = config.make_keys()
    files = CONFIGURATION.files(keys)
    assert files["authorized_keys"].decode().split() == ["ssh-ed25519", keys.client_public]
    assert files["host_key"] == keys.host_private
    assert keys.client_private not in b"".join(files.values())
