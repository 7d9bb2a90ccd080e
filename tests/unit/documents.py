"""A made-up comparison for tests of reports: no figure in it was measured."""

from __future__ import annotations

import random

from sandbox.measure import summary
from sandbox.results import (
    Caveat,
    Document,
    Host,
    IsolationCheck,
    LevelInfo,
    Load,
    Plan,
    Sample,
    Status,
    Verdict,
)

_PHASES_MS = {
    "process": (0.4, 2.1, 0.01, 1.2, 21.0),
    "namespace": (0.4, 3.2, 0.01, 3.5, 22.0),
    "container": (1.1, 55.0, 0.01, 210.0, 24.0),
    "gvisor": (1.0, 60.0, 0.01, 330.0, 90.0),
    "vm": (2.0, 120.0, 2100.0, 150.0, 620.0),
}
_RATE = {"process": 61_000, "namespace": 60_500, "container": 60_100, "gvisor": 12_300, "vm": 5_100}
_MEMORY = {"process": 9.1, "namespace": 9.3, "container": 9.9, "gvisor": 31.0, "vm": None}
_CHECKS = ("kernel", "processes", "files", "network", "users", "namespaces", "capabilities", "devices", "memory limit")
_SHARED = {"process": 8, "namespace": 1, "container": 1, "gvisor": 0, "vm": 0}


def sample(level: str, number: int, chance: random.Random, *, error: str | None = None) -> Sample:
    def noise() -> float:
        return chance.lognormvariate(0, 0.06)

    phases = {
        name: ms / 1000 * noise()
        for name, ms in zip(("prepare", "create", "boot", "start", "first_reply"), _PHASES_MS[level], strict=True)
    }
    rate = _RATE[level] * noise()
    latency = {name: 64 / rate * times for name, times in zip(LATENCIES, (0.97, 1.2, 1.6, 2.4, 7.0), strict=True)}
    load = Load(int(rate * 2), 2.0, rate, int(rate * 240), latency, dict.fromkeys(ERRORS, 0))
    memory = _MEMORY[level]
    return Sample(
        level=level,
        round=number,
        position=0,
        started="2026-01-02T03:04:05Z",
        phases_s=phases if error is None else {},
        startup_s=sum(phases.values()) if error is None else None,
        load=load if error is None else None,
        memory_bytes=int(memory * 1048576 * noise()) if memory and error is None else None,
        steal_share=0.0,
        error=error,
    )


LATENCIES = ("p50", "p90", "p99", "p99.9", "max")
ERRORS = ("connect", "read", "write", "timeout", "status")


def comparison(
    *, samples: int = 7, seed: int = 5, unavailable: tuple[str, ...] = (), failing: tuple[str, ...] = ()
) -> Document:
    """A complete comparison of all five levels; `failing` levels fail in their second sample."""
    chance = random.Random(seed)
    levels = [
        LevelInfo(
            name=name,
            label="vm (TCG, emulated)" if name == "vm" and name not in unavailable else name,
            emulated=name == "vm" and name not in unavailable,
            available=name not in unavailable,
            reason=f"{name} needs an engine that is not installed here" if name in unavailable else None,
            remedy="sandbox doctor --fix" if name in unavailable else None,
        )
        for name in _PHASES_MS
    ]
    document = Document(
        sandbox_version="0.1.0",
        status=Status.COMPLETE,
        started="2026-01-02T03:04:05Z",
        finished="2026-01-02T03:09:05Z",
        plan=Plan("reactor", list(_PHASES_MS), "process", samples, 2, 64, "/", seed, "0", "1", 1.0, 256 << 20, 128),
        host=Host(
            kernel="6.18.0",
            machine="x86_64",
            system="Debian GNU/Linux 12 (bookworm)",
            cpu_model="A Made-up CPU @ 2.50GHz",
            cpus=2,
            memory_bytes=24 << 30,
            virtualisation="kind unknown",
            cgroups="hybrid",
            clocksource="tsc",
            governor=None,
            load_average=[0.1, 0.2, 0.3],
            versions={"docker": "20.10.24", "wrk": "4.1.0"},
            images={"rootfs": "sha256:" + "0123456789abcdef" * 4},
        ),
        levels=levels,
        samples=[
            sample(name, number, chance, error="the server died" if name in failing and number == 2 else None)
            for number in range(samples + 1)
            for name in _PHASES_MS
            if name not in unavailable
        ],
        isolation=[
            IsolationCheck(
                name,
                check,
                Verdict.SHARED if index < _SHARED[name] else (Verdict.HELD if "limit" in check else Verdict.ISOLATED),
                {"inside": f"{check} as seen in {name}", "host": "what the host saw"},
                f"the witness compared {check}",
            )
            for name in _PHASES_MS
            if name not in unavailable
            for index, check in enumerate(_CHECKS)
        ],
        warnings=[Caveat("virtual-host", "this host is itself a virtual machine (made up)")],
    )
    document.summary = summary.summarise(document)
    document.warnings += summary.caveats(document)
    return document
