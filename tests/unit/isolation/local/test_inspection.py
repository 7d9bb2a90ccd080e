"""What files of /proc say, taken apart."""

from __future__ import annotations

from sandbox.isolation.local import inspection
from sandbox.kernel import caps

MOUNTINFO = """\
600 500 0:40 / / ro,nosuid,nodev,relatime - overlay overlay rw,lowerdir=/a:/b
601 600 0:41 / /tmp rw,nosuid,nodev shared:5 - tmpfs tmpfs rw,size=65536k,uid=1879048192
602 600 0:5 /null /proc/keys ro,nosuid - devtmpfs devtmpfs rw,mode=755
603 600 254:0 /srv/a\\040b /data\\011x rw,nosuid,nodev master:1 - ext4 /dev/vda rw
"""


def test_mounts() -> None:
    found = inspection.parse_mounts(MOUNTINFO)
    assert [mount["target"] for mount in found] == ["/", "/tmp", "/proc/keys", "/data\tx"]
    assert found[0]["options"] == ["ro", "nosuid", "nodev", "relatime", "lowerdir=/a:/b"]
    assert [mount["read_only"] for mount in found] == [True, False, True, False]
    assert found[2]["root"] == "/null"
    assert (found[3]["root"], found[3]["source"], found[3]["type"]) == ("/srv/a b", "/dev/vda", "ext4")


def test_the_root_that_is_seen_is_the_last_one() -> None:
    below = {"target": "/", "read_only": False, "type": "ext4"}
    above = {"target": "/", "read_only": True, "type": "overlay"}
    assert inspection.root([below, above]) == {"read_only": True, "type": "overlay"}
    assert inspection.root([]) is None


def test_ids() -> None:
    rows = [[0, 1000, 10], [100, 5000, 1]]
    assert [inspection.inside(number, rows) for number in (1000, 1009, 1010, 5000)] == [0, 9, None, 100]
    assert inspection.inside(7, None) is None


def test_links() -> None:
    text = (
        "Inter-|   Receive |  Transmit\n face |bytes packets\n"
        "    lo:     12       1    0    0    0     0          0         0       12       1    0    0    0     0\n"
        "  eth0: 123456     100    0    0    0     0          0         0      789      10    0    0    0     0\n"
    )
    found = inspection.parse_links(text)
    assert found == {"lo": {"received": 12, "sent": 12}, "eth0": {"received": 123456, "sent": 789}}


def test_capabilities_by_name() -> None:
    assert caps.names(0) == []
    assert caps.names(1 | 1 << 21 | 1 << 40) == ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"]
    assert caps.names(1 << 63) == ["63"], "one that is newer than the table"
