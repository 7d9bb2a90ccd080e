"""What files of /proc say, taken apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.kernel import caps, procfs

MOUNTINFO = """\
600 500 0:40 / / ro,nosuid,nodev,relatime - overlay overlay rw,lowerdir=/a:/b
601 600 0:41 / /tmp rw,nosuid,nodev shared:5 - tmpfs tmpfs rw,size=65536k,uid=1879048192
602 600 0:5 /null /proc/keys ro,nosuid - devtmpfs devtmpfs rw,mode=755
603 600 254:0 /srv/a\\040b /data\\011x rw,nosuid,nodev master:1 - ext4 /dev/vda rw
604 600 254:0 / /srv rw,relatime - ext4 /dev/vda ro,errors=remount-ro
"""


def test_mounts() -> None:
    found = procfs.mounts(MOUNTINFO)
    assert [mount.target for mount in found] == ["/", "/tmp", "/proc/keys", "/data\tx", "/srv"]
    assert found[0].options == ["ro", "nosuid", "nodev", "relatime", "lowerdir=/a:/b"]
    assert [mount.read_only for mount in found] == [True, False, True, False, True]
    assert [mount.options[0] for mount in found] == ["ro", "rw", "ro", "rw", "ro"]
    assert found[2].root == "/null"
    assert (found[3].root, found[3].source, found[3].type) == ("/srv/a b", "/dev/vda", "ext4")


def test_names_are_unescaped() -> None:
    assert procfs.unescape(r"/a\040b\011c\134d\012") == "/a b\tc\\d\n"
    assert procfs.unescape("/a") == "/a"


def test_mounts_without_roots() -> None:
    """/proc/mounts, which some kernels have alone."""
    found = procfs.mounts("none / 9p ro,trans=fd 0 0\ntmpfs /a\\040b tmpfs rw,nosuid 0 0\n")
    assert [(one.target, one.type, one.root, one.read_only) for one in found] == [
        ("/", "9p", None, True),
        ("/a b", "tmpfs", None, False),
    ]


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"])
def test_a_name_makes_no_line_of_its_own(end: str) -> None:
    """The kernel writes these as they are; Python takes them for the ends of lines."""
    line = f"603 600 254:0 / /data{end}604 rw - ext4 /dev/vda rw\n"
    (mount,) = procfs.mounts(line)
    assert mount.target == f"/data{end}604"
    assert procfs.fields(f"Name:\tx{end}Seccomp:\t2\nUid:\t1\n").keys() == {"Name", "Uid"}


def test_what_this_host_has() -> None:
    found = {mount.target: mount.type for mount in procfs.own_mounts()}
    assert found["/proc"] == "proc"
    assert len(procfs.own_mounts()) == Path("/proc/self/mountinfo").read_bytes().count(b"\n")
    mine = procfs.stat(Path("/proc/self/stat").read_bytes())
    assert (mine.parent, mine.session) == (os.getppid(), os.getsid(0))
    assert procfs.kibibytes(procfs.read("/proc/meminfo") or "", "MemTotal") == os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )
    assert procfs.read(f"/proc/{2**22 + 1}/status") is None
    assert procfs.traffic(os.getpid(), "lo") != (None, None)
    assert procfs.traffic(os.getpid(), "none") == (None, None)
    assert procfs.size("/proc/1/none") is None


def test_a_process_whose_name_holds_brackets() -> None:
    tail = "S 7 8 9 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 4711 0"
    assert procfs.stat(f"5 (a) R 1 (b) {tail}".encode()) == procfs.Stat("S", 7, 9, 4711)


def test_control_groups() -> None:
    text = "12:cpu,cpuacct:/a/b\n3:name=systemd:/x:y\n0::/c\n"
    assert procfs.groups(text) == {"cpu": "/a/b", "cpuacct": "/a/b", "name=systemd": "/x:y", "": "/c"}
    assert procfs.keyed("low 0\noom_kill 12\nmax no\n") == {"low": 0, "oom_kill": 12}


def test_links() -> None:
    text = (
        "Inter-|   Receive |  Transmit\n face |bytes packets\n"
        "    lo:     12       1    0    0    0     0          0         0       12       1    0    0    0     0\n"
        "  eth0: 123456     100    0    0    0     0          0         0      789      10    0    0    0     0\n"
    )
    assert procfs.links(text) == {"lo": (12, 12), "eth0": (123456, 789)}


def test_a_route_is_read() -> None:
    text = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010012C6\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000012C6\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    )
    assert procfs.routes(text) == ["default via 198.18.0.1 dev eth0", "198.18.0.0/16 dev eth0"]


def test_addresses() -> None:
    text = (
        "Main:\n  +-- 0.0.0.0/0 3 0 4\n     |-- 198.18.0.0\n        /16 link UNICAST\n"
        "Local:\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 198.18.2.1\n        /32 host LOCAL\n"
        "     |-- 198.18.255.255\n        /32 link BROADCAST\n"
    )
    assert procfs.addresses(text * 2) == ["127.0.0.1", "198.18.2.1"]


def test_capabilities_by_name() -> None:
    assert caps.names(0) == []
    assert caps.names(1 | 1 << 21 | 1 << 40) == ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"]
    assert caps.names(1 << 63) == ["63"], "one that is newer than the table"


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    procfs.mounts(text)
    procfs.fields(text)
    procfs.keyed(text)
    procfs.addresses(text)
