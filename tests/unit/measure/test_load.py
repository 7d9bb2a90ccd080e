"""The load generator's summary and time limit, and the description of the host."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from sandbox.errors import EngineError, UnavailableError
from sandbox.measure import host, load
from sandbox.measure.host import CpuTimes

LINE = (
    b'{"duration_us":2000000,"requests":100000,"bytes":12000000,"p50":900,"p90":1200,"p99":2000,"p99.9":4000,'
    b'"max":9000,"connect":0,"read":1,"write":0,"timeout":2,"status":3}\n'
)


def plain(argv: object) -> list[str]:
    assert isinstance(argv, list)
    return argv


def fake_wrk(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    script = folder / "wrk"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_summary_is_read_from_the_last_line() -> None:
    got = load.parse(b"Running 2s test @ http://198.18.2.1:8080/\n  some text\n" + LINE)
    assert got.requests_per_s == 50_000
    assert got.latency_s == pytest.approx({"p50": 9e-4, "p90": 1.2e-3, "p99": 2e-3, "p99.9": 4e-3, "max": 9e-3})
    assert got.errors == {"connect": 0, "read": 1, "write": 0, "timeout": 2, "status": 3}


@pytest.mark.parametrize("output", [b"", b"unable to connect\n", b"{}\n", LINE.replace(b"2000000", b"0")])
def test_output_without_a_summary_is_an_error(output: bytes) -> None:
    with pytest.raises(EngineError, match="wrk gave no summary"):
        load.parse(output)


def test_a_load_without_any_answer_is_an_error_that_counts_what_happened() -> None:
    with pytest.raises(EngineError, match="wrk got no reply: 1 read errors, 2 timeout errors, 3 status errors"):
        load.parse(LINE.replace(b"100000", b"0"))


def test_a_missing_generator_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match="wrk is not installed"):
        load.generator()


def test_an_overrun_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wrk(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    monkeypatch.setattr(load, "GRACE", 0.3)
    begin = time.monotonic()
    with pytest.raises(EngineError, match="did not end within 1 s and was killed"):
        load.saturate("http://127.0.0.1:1/", duration=1, connections=1, cpu=min(os.sched_getaffinity(0)), command=plain)
    assert time.monotonic() - begin < 10
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_failure_of_the_generator_carries_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wrk(tmp_path, monkeypatch, "echo no such thing >&2; exit 1")
    with pytest.raises(EngineError, match=r"wrk failed \(1\): no such thing"):
        load.saturate("http://127.0.0.1:1/", duration=1, connections=1, cpu=min(os.sched_getaffinity(0)), command=plain)


def test_the_generator_alone_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "line").write_bytes(LINE)
    fake_wrk(tmp_path, monkeypatch, f"grep Cpus_allowed_list /proc/self/status > {tmp_path}/cpus; cat {tmp_path}/line")
    before = os.sched_getaffinity(0)
    cpu = max(before)
    load.saturate("http://127.0.0.1:1/", duration=1, connections=1, cpu=cpu, command=plain)
    assert (tmp_path / "cpus").read_text().split() == ["Cpus_allowed_list:", str(cpu)]
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("allowed", "siblings", "server", "generator", "code"),
    [
        ({0, 1}, [{0}, {1}], 0, 1, None),
        ({0, 1, 2, 3}, [{0, 2}, {1, 3}], 0, 3, None),
        ({2, 3}, [{2, 3}], 2, 3, "one-core"),
        ({5}, [{5}], 5, 5, "one-cpu"),
    ],
)
def test_server_and_generator_get_cpus_of_their_own(
    allowed: set[int], siblings: list[set[int]], server: int, generator: int, code: str | None
) -> None:
    plan = host.plan_cpus(allowed, siblings)
    assert (plan.server, plan.generator) == (server, generator)
    assert (plan.caveat.code if plan.caveat else None) == code


def test_cpu_lists_are_read() -> None:
    assert host.parse_cpu_list("0-2,5\n") == {0, 1, 2, 5}


def test_shares_of_cpu_time() -> None:
    before = CpuTimes.parse("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3\n")
    after = CpuTimes.parse("cpu  150 0 150 760 120 0 0 20 90 0\n")
    assert before.total == 1000, "guest time is part of user time and must not count twice"
    assert after.steal_since(before) == pytest.approx(0.1)
    assert after.busy_since(before) == pytest.approx(0.6)
    assert before.steal_since(before) is None


def test_the_host_is_described_without_its_name() -> None:
    particulars = host.describe()
    assert particulars.cpus >= 1
    assert particulars.memory_bytes > 0
    assert particulars.cgroups in ("v1", "v2", "hybrid")
    name = os.uname().nodename
    assert len(name) < 4 or name not in repr(particulars)


def test_a_busy_host_few_samples_and_tenants_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_busy_share", lambda: 0.8)
    found = host.caveats(host.describe(), samples=3, few=6, tenants=2)
    assert {"busy", "few-samples", "tenants"} <= {caveat.code for caveat in found}
    assert "80%" in next(caveat.text for caveat in found if caveat.code == "busy")
