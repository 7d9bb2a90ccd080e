"""Levels `container` and `gvisor`: a Docker container, with the default runtime or with runsc.

A container's name and label contain the sandbox's id, so that any later command can find it through the engine alone.
Request bodies follow the Docker Engine API (https://docs.docker.com/reference/api/engine/).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, ClassVar

from sandbox.errors import ImageError, SandboxError, SpecError, UnavailableError
from sandbox.failpoints import Failpoint, reached
from sandbox.host.docker import Engine, RefusalError, socket_path
from sandbox.isolation.base import INIT, SHM_BYTES, Features, Isolation, Progress, environment, writable
from sandbox.isolation.docker import engines, gvisor, mounts, network, sandbox
from sandbox.isolation.docker.network import Lab
from sandbox.isolation.docker.sandbox import ContainerSandbox, Handle
from sandbox.isolation.docker.usage import NANO
from sandbox.spec import MIB, SANDBOX_UID, SandboxSpec
from sandbox.state.record import Record

LABEL_ID = "org.sandbox.id"
LABEL_LEVEL = "org.sandbox.isolation"

_ENGINE_ENV: dict[str, str | None] = {"HOSTNAME": None}
"""Entries that dockerd adds to every environment."""
_GONE = 404
_ENGINE = ("docker.daemon", "python.docker")


class ContainerIsolation(Isolation):
    """Docker with its default runtime (runc)."""

    name = "container"
    features = Features(shares_kernel=True, warm_by_pause=True, requires=_ENGINE)
    runtime: ClassVar[str | None] = None

    def __init__(self, lab: Lab | None = None) -> None:
        self.lab = lab or Lab()
        self._engines: dict[str, Engine] = {}
        self._image: str | None = None

    def engine(self, socket: str | None = None) -> Engine:
        """Return the connection to an engine, by default the one that the docker command would use.

        Raises:
            UnavailableError: the engine is not on this host, or Docker's configuration cannot be read.
        """
        socket = socket or socket_path()
        if socket not in self._engines:
            self._engines[socket] = Engine(socket)
        return self._engines[socket]

    def check(self, spec: SandboxSpec) -> None:
        """Check that the sources of the mounts exist; all other fields of a spec are supported."""
        for mount in spec.mounts:
            mounts.identity(mount.source)

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:

        engine = self.engine()
        engine.version()  # fails before an image is built if the engine does not run
        from sandbox import images  # `exec` and the like do without them, and they take 8 ms

        self._image = images.ensure(images.Form.DOCKER, progress).reference
        engines.note(self.lab.name, engine.socket)
        network.ensure(engine, self.lab)

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> ContainerSandbox:
        engine = self.engine()
        made = self.sandbox_class(record, engine)
        # By name and before the call: the engine may have created it even if no answer arrives.
        undo.callback(made.remove)
        handle = Handle(engine.socket)
        record.keep_handle(handle)
        made.sources = mounts.identities(spec, record)
        try:
            with engine.talking("the container could not be created") as api:
                made.uncertain = True
                body = self.body(spec, record, _numbers(engine.version().api))
                container = api.create_container_from_config(body, name=made.name)["Id"]
                made.uncertain = False
        except RefusalError as error:
            made.uncertain = False
            raise self._create_refused(error) from error
        record.keep_handle(replace(handle, container=container))
        reached(Failpoint.CONTAINER_CREATED)
        return made

    def _create_refused(self, error: RefusalError) -> SandboxError:
        if "unknown runtime" in error.reason.lower():
            lacking = self.missing()
            remedy = lacking[0].remedy if lacking else "sandbox doctor --fix"
            return UnavailableError(f"dockerd does not know the runtime {self.runtime}", remedy)
        if error.status == _GONE and "no such image" in error.reason.lower():
            return ImageError("dockerd does not have the sandbox's image", "sandbox images build")
        return error

    def body(self, spec: SandboxSpec, record: Record, version: tuple[int, ...]) -> dict[str, Any]:
        """Return the body of the create call, which includes the network and the address.

        Raises:
            ImageError: the image has not been built.
        """
        endpoint: dict[str, Any] = {"IPAMConfig": {"IPv4Address": record.address}}
        body: dict[str, Any] = {
            "Image": self._reference(),
            "Hostname": spec.name,
            "Labels": {LABEL_ID: record.id, LABEL_LEVEL: self.name},
            "Entrypoint": list(INIT),
            "Cmd": list(spec.argv),
            # A name without a value removes an entry that the engine would add.
            "Env": [
                key if value is None else f"{key}={value}" for key, value in (_ENGINE_ENV | environment(spec)).items()
            ],
            "User": f"{SANDBOX_UID}:{SANDBOX_UID}",
            "WorkingDir": spec.workdir,
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": self.host_config(spec) | {"Mounts": mounts.bodies(spec, record)},
            "NetworkingConfig": {"EndpointsConfig": {self.lab.name: endpoint}},
        }
        # The hardware address moved from the container to its endpoint with version 1.44 of the API.
        (endpoint if version >= (1, 44) else body)["MacAddress"] = record.mac
        return body

    def _reference(self) -> str:

        if self._image is None:
            from sandbox import images

            image = images.find(images.Form.DOCKER)
            if image is None or image.reference is None:
                raise ImageError("the Docker image has not been built", "sandbox images build")
            self._image = image.reference
        return self._image

    def host_config(self, spec: SandboxSpec) -> dict[str, Any]:
        """Return the limits and isolation settings for the create call."""
        from sandbox.isolation.docker import seccomp

        config: dict[str, Any] = {
            "NetworkMode": self.lab.name,
            # The engine's own resolver answers at 127.0.0.11 and forwards other queries to the host's name server; if
            # that listens on the host's loopback, it does so from the host, past the network's rules. A configured
            # server is queried from inside, and there is none on the sandbox's loopback.
            "Dns": ["127.0.0.1"],
            "NanoCpus": round(spec.cpus * NANO),
            "Memory": spec.memory,
            "MemorySwap": spec.memory,  # memory plus swap: no swap
            "PidsLimit": spec.pids_limit,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp.profile()}"],
            "ReadonlyRootfs": True,
            "Tmpfs": {path: f"rw,nosuid,nodev,noexec,size={size},mode={mode:o}" for path, size, mode in writable(spec)},
            "ShmSize": SHM_BYTES,
            "LogConfig": {"Type": "none"},  # the keeper writes it
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "RestartPolicy": {"Name": "no"},
        }
        if spec.cpuset is not None:
            config["CpusetCpus"] = spec.cpuset
        if self.runtime is not None:
            config["Runtime"] = self.runtime
        return config

    @property
    def sandbox_class(self) -> type[ContainerSandbox]:
        """The class of the sandboxes of this level."""
        return ContainerSandbox

    def adopt(self, record: Record) -> ContainerSandbox:
        handle = record.read_handle(Handle)
        return self.sandbox_class(record, self.engine(handle.socket if handle else None))

    def prune(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        found = []
        for socket in dict.fromkeys((socket_path(), *engines.noted(self.lab.name))):
            # An engine that does not run has no running containers; it stays noted.
            with suppress(UnavailableError):
                found += self._prune(self.engine(socket), known, dry_run=dry_run)
        return found

    def _prune(self, engine: Engine, known: Collection[str], *, dry_run: bool) -> list[str]:
        found = []
        with engine.talking("the containers cannot be listed") as api:
            listed = api.containers(all=True, filters={"label": [LABEL_ID, f"{LABEL_LEVEL}={self.name}"]})
        for container in listed:
            if container["Labels"][LABEL_ID] in known:
                continue
            name = container["Names"][0].lstrip("/") if container["Names"] else container["Id"]
            if not dry_run:
                self.remove(engine, container["Id"], name)
            found.append(f"container {name}")
        return found

    def remove(self, engine: Engine, container: str, name: str) -> None:
        """Remove a container in any state.

        Raises:
            EngineError
        """
        sandbox.remove(engine, container, name)

    def remove_shared(self) -> list[str]:
        removed = []
        for socket in engines.noted(self.lab.name):
            engine = self.engine(socket)
            with suppress(UnavailableError):
                removed += network.remove(engine, self.lab)
                if not network.exists(engine, self.lab):  # it remains while other containers are connected
                    engines.forget(self.lab.name, socket)
        return removed


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


class GVisorIsolation(ContainerIsolation):
    """Docker with gVisor's runtime runsc, which puts a user-space kernel between the workload and the host's kernel.

    The host cannot enforce the limit on processes here. Docker's --pids-limit counts host threads: those of the
    user-space kernel itself (about 50 when idle), and several for each process inside. If they run out, the whole
    sandbox dies. Therefore the limit is set as RLIMIT_NPROC, which gVisor's kernel enforces per user inside, with
    EAGAIN as Linux would (setrlimit(2)). The host's limit is set high enough not to be reached first.
    """

    name = "gvisor"
    features = Features(shares_kernel=False, requires=(*_ENGINE, "docker.runsc"))
    runtime = "runsc"

    MIN_MEMORY: ClassVar[int] = 48 * MIB
    """In bytes. The user-space kernel runs under the same limit, and needs about 20 MiB."""

    def check(self, spec: SandboxSpec) -> None:
        super().check(spec)
        if spec.memory < self.MIN_MEMORY:
            raise SpecError(
                f"--memory {spec.memory // MIB}m is too little for gvisor, whose own kernel runs within it",
                f"at least {self.MIN_MEMORY // MIB}m",
            )

    def host_config(self, spec: SandboxSpec) -> dict[str, Any]:
        config = super().host_config(spec)
        config["Ulimits"] = [{"Name": "nproc", "Soft": spec.pids_limit, "Hard": spec.pids_limit}]
        config["PidsLimit"] = host_tasks(spec.pids_limit)
        return config

    @property
    def sandbox_class(self) -> type[ContainerSandbox]:
        return gvisor.GVisorSandbox

    def remove(self, engine: Engine, container: str, name: str) -> None:
        gvisor.release(engine, container)
        super().remove(engine, container, name)


def host_tasks(pids_limit: int) -> int:
    """Return the number of host threads that a gVisor sandbox with this many processes may need, with a margin.

    Measured with runsc 20221219 (ptrace): 49 when idle, and at most 10 more for each process. Its Go runtime never ends
    a thread once it has started it.
    """
    return min(256 + 16 * pids_limit, 4_194_304)
