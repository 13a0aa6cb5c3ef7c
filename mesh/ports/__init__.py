"""The ports: what the core asks of brokers, stores, apps and clocks.

Each docstring is a contract; `tests/contract/` holds one suite per port, run over every implementation. The names of
the hot path are here; those of tables, alarms and stores are imported from their own modules.
"""

from mesh.ports.app import AppChannel, AppResponse, AppRoute, HeaderLines
from mesh.ports.clock import Clock, Timer
from mesh.ports.events import (
    NOW,
    OLDEST,
    Backlog,
    Delivery,
    EventLog,
    Feature,
    Group,
    Handler,
    Message,
    Mode,
    Order,
    Page,
    Record,
    Start,
    Subscription,
    Topic,
)
from mesh.ports.requests import (
    Body,
    BodyStream,
    HeaderList,
    NoResponder,
    Peer,
    PeerLost,
    Request,
    RequestHandler,
    Requests,
    Response,
    Server,
)

__all__ = [
    "NOW",
    "OLDEST",
    "AppChannel",
    "AppResponse",
    "AppRoute",
    "Backlog",
    "Body",
    "BodyStream",
    "Clock",
    "Delivery",
    "EventLog",
    "Feature",
    "Group",
    "Handler",
    "HeaderLines",
    "HeaderList",
    "Message",
    "Mode",
    "NoResponder",
    "Order",
    "Page",
    "Peer",
    "PeerLost",
    "Record",
    "Request",
    "RequestHandler",
    "Requests",
    "Response",
    "Server",
    "Start",
    "Subscription",
    "Timer",
    "Topic",
]
