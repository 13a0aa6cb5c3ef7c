"""A real Apache Kafka (KRaft: broker and controller in one process) that tests may stop, kill and freeze.

Needs Java 17 and the jars that `make kafka` fetches; `kafka_jars.missing()` says what is not there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.ports import free_port
from tests.servers import kafka_jars

START_LIMIT = 120.0
"""Seconds until a server must be ready; it takes 3 when nothing else runs."""
STOP_LIMIT = 30.0
CLUSTER_ID = "bWVzaHdpcmUtdGVzdHMtMQ"
ADMIN = "admin"
"""The user who may do everything, where there are users."""
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_JVM = ("-Xms64m", "-Xmx384m", "-Xshare:auto", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
_QUICK = "-XX:TieredStopAtLevel=1"
"""The JVM compiles once, and without much thought: starts take two thirds of the processor's time."""
_STARTED = "Kafka Server started"
_SAYS_SO = "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info"


class ApacheKafka:
    """A server on ports and a folder of its own, both kept over restarts.

    `options` are those of its properties: `ApacheKafka(message_max_bytes=4096)`. With `users`, names and passwords,
    clients sign in by SASL (PLAIN or SCRAM, no TLS) and may do what the broker's ACLs let them; `ADMIN` may do all.
    One that is `measured` starts more slowly and then works as fast as it can.
    """

    def __init__(self, *, users: Mapping[str, str] | None = None, measured: bool = False, **options: object) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="meshwire-kafka-"))
        self._properties = self._folder / "server.properties"
        self._users = dict(users or {})
        self._jvm = () if measured else (_QUICK,)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.controller = f"127.0.0.1:{free_port()}"
        self.address = f"127.0.0.1:{self.port}"
        self.log = self._folder / "server.log"
        self._inside = f"127.0.0.1:{free_port()}"
        self.configure(**options)

    def configure(self, *, node: int = 1, voters: str = "", **options: object) -> None:
        """Take other options from the next start on. The first start settles `node` and `voters`."""
        own: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.voters": voters or f"{node}@{self.controller}",
            "listeners": f"CLIENTS://{self.address},INSIDE://{self._inside},CONTROLLER://{self.controller}",
            "inter.broker.listener.name": "INSIDE",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CLIENTS:PLAINTEXT,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self._folder / "data",
            # what a cluster of one needs, and small: these topics are made when they are first used
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            # the default of 9 s is how long one that crashed is kept from coming back
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
        }
        if self._users:
            known = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
            own |= {
                "listener.security.protocol.map": "CLIENTS:SASL_PLAINTEXT,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "listener.name.clients.sasl.enabled.mechanisms": ",".join(_MECHANISMS),
                "listener.name.clients.plain.sasl.jaas.config": (
                    f"org.apache.kafka.common.security.plain.PlainLoginModule required {known};"
                ),
                "listener.name.clients.scram-sha-256.sasl.jaas.config": _SCRAM,
                "listener.name.clients.scram-sha-512.sasl.jaas.config": _SCRAM,
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                # those who come by the other two listeners are the servers
                "super.users": f"User:{ADMIN};User:ANONYMOUS",
            }
        own |= {name.replace("_", "."): value for name, value in options.items()}
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in own.items()))

    def start(self, *, wait: bool = True) -> None:
        self._format()
        self.log.touch()
        self._starts = self.log.read_text().count(_STARTED)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_java(), *self._jvm, _SAYS_SO, "kafka.Kafka", self._properties],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Each server of a cluster waits for most of the others."""
        assert self._process is not None
        limit = time.monotonic() + START_LIMIT
        while self.log.read_text().count(_STARTED) == self._starts:
            if time.monotonic() > limit or self._process.poll() is not None:
                raise AssertionError(f"Apache Kafka does not start:\n{self.log.read_text()[-5000:]}")
            time.sleep(0.02)

    @property
    def url(self) -> str:
        """What `MESHWIRE_BROKER` is set to."""
        return f"kafka://{self.address}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End it in good order (SIGTERM): it hands its partitions over, and takes its time."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """It stays connected, and does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # until then some of its threads still answer

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _format(self) -> None:
        if (self._folder / "data" / "meta.properties").exists():
            return
        command = [*_java(), _QUICK, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", self._properties]
        for name, password in self._users.items():
            for mechanism in _MECHANISMS[1:]:
                command += ["--add-scram", f'{mechanism}=[name="{name}",password="{password}"]']
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_LIMIT)
        assert done.returncode == 0, done.stdout + done.stderr

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # one that is frozen would not notice
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def cluster(size: int = 3, **options: object) -> list[ApacheKafka]:
    """Servers of one cluster, not started: `start(wait=False)` each, then wait for each. What is written is on all but
    one of them before it counts as stored."""
    servers = [ApacheKafka() for _ in range(size)]
    voters = ",".join(f"{node}@{server.controller}" for node, server in enumerate(servers, 1))
    copies = {
        "default.replication.factor": size,
        "min.insync.replicas": max(1, size - 1),
        "offsets.topic.replication.factor": size,
        "transaction.state.log.replication.factor": size,
        "transaction.state.log.min.isr": max(1, size - 1),
    }
    for node, server in enumerate(servers, 1):
        server.configure(node=node, voters=voters, **copies | options)
    return servers


def _java() -> list[str | Path]:
    return [kafka_jars.java(), *_JVM, "-cp", f"{kafka_jars.folder()}/*"]
