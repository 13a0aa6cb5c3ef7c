"""A real MQTT broker (the MQTT listener of nats-server) that tests may stop, kill and freeze."""

from __future__ import annotations

from pathlib import Path

from tests.contract.nats_server import NatsServer
from tests.ports import free_port

USER, PASSWORD = "machine", "open-sesame"


class MqttServer(NatsServer):
    """`mqtt_port` is kept over restarts, and so are sessions."""

    def __init__(self, folder: Path) -> None:
        self.mqtt_port = free_port()
        super().__init__(
            folder,
            # It sends what was not acknowledged again after this time only, also to a session that comes again.
            mqtt={"listen": f"127.0.0.1:{self.mqtt_port}", "ack_wait": "2s"},
            authorization={"users": [{"user": USER, "password": PASSWORD}]},
        )

    @property
    def mqtt_url(self) -> str:
        return f"tcp://{USER}:{PASSWORD}@127.0.0.1:{self.mqtt_port}"
