"""Calls of actors from anywhere: find the owner, pass the call on, wait while the actor moves."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import lru_cache
from urllib.parse import unquote

from mesh import addressing
from mesh.actors.callbacks import REENTRANCY, Call, Refusal, whole
from mesh.actors.directory import Directory, Place
from mesh.actors.hosting import Hosting
from mesh.actors.names import ActorName, InvalidName, actor_name
from mesh.actors.turns import NotMine
from mesh.errors import BrokerUnavailable, Code, MeshError
from mesh.ports import Clock, NoResponder, Peer, PeerLost, Request, Requests, Response
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Resiliency

logger = logging.getLogger("meshwire.actors")

FENCE = b"meshwire-fence"
"""The last header of an answer between sidecars: the token under which the turn was made."""
NOT_MINE = 421
"""The status of an answer between sidecars: the actor is not here, ask again (RFC 9110, 15.5.20)."""

NO_HOST_LIMIT = 5.0
"""Seconds for which a type that nobody hosts is waited for (Dapr: five retries, one second each)."""
MOVE_LIMIT = 30.0
"""Seconds for which the next owner of an actor is waited for (Dapr: as long as its dissemination may take)."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds until the same owner is asked again; each pause is twice the one before. News end it early."""


class NoOwner(MeshError):
    """Nobody hosts the actor, or nobody has taken it over in time. It had no turn that anybody knows of."""

    def __init__(self, actor: ActorName, why: str = "") -> None:
        super().__init__(f"did not find address for actor '{actor}'" + (why and f": {why}"))


class Actors:
    """All actors of the namespace, those that are hosted here among them."""

    def __init__(
        self,
        me: Peer,
        instance: str,
        directory: Directory,
        requests: Requests,
        clock: Clock,
        *,
        lease: float,
        resiliency: Resiliency,
    ) -> None:
        """`lease` in seconds: after that a host that is gone without a word is replaced."""
        self._me = me
        self._instance = instance
        self._directory = directory
        self._requests = requests
        self._clock = clock
        self._patience = lease + 3.0
        """Seconds after which the owner of a call that was lost is not replaced: it has not died."""
        self._resiliency = resiliency
        self.hostings: dict[str, Hosting] = {}
        self.own: Collection[str] = ()
        """The types of the app: those that are hosted here, or will be once the app and the broker can."""

    # Calling

    async def call(self, call: Call) -> Response:
        """The answer for the client, whatever it is. A turn whose owner dies may be taken again by the next one.

        Raises `NoOwner` when there is none for too long, `BreakerOpen`.
        """
        policy = self._resiliency.for_actor(call.actor.type, call.actor.id)
        return await (self._call(call) if policy is None else policy.run(lambda: self._call(call), failed=_judge))

    async def _call(self, call: Call) -> Response:
        begun = self._clock.now()
        partition = addressing.actor_partition(call.actor.id)
        pause = FIRST_PAUSE
        lost_at, lost_by, loss = None, 0.0, ""
        while True:
            place = self._directory.place(call.actor.type, partition)
            now = self._clock.now()
            if place is not None and place != lost_at:
                outcome = await self._ask(place, call)
                if isinstance(outcome, Response):
                    return outcome
                if isinstance(outcome, PeerLost):
                    # It may have had its turn. Only when its owner is gone for good can there not be an answer.
                    lost_at, lost_by, loss = place, self._clock.now() + self._patience, str(outcome)
                    continue
            elif lost_at is not None and now >= lost_by:
                return Refusal(Code.ACTOR_INVOKE, f"error invoke actor method: {loss}").response()
            hosted = bool(self._directory.hosts(call.actor.type)) or not self._directory.current
            limit = MOVE_LIMIT if hosted else NO_HOST_LIMIT
            if now - begun >= (limit + self._patience if lost_at else limit):
                raise NoOwner(call.actor, self._directory.problem)
            await self._directory.news(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _ask(self, place: Place, call: Call) -> Response | PeerLost | None:
        """`None` when it is to be asked again, there or elsewhere."""
        if place.instance == self._instance:
            hosting = self.hostings.get(call.actor.type)
            if hosting is None:
                return None
            try:
                response, token = await hosting.turn(call, self._me)
            except NotMine as error:
                logger.debug("%s", error)
                return None
            return self._accepted(call, response, token)
        target = _host(self._me.namespace, place.app_id)
        try:
            response = await self._requests.request(target, _request(call), instance=place.instance)
            body = await whole(response.body)
        except PeerLost as error:
            return error
        except (NoResponder, BrokerUnavailable) as error:
            logger.debug("%s: %s", call.actor, error)
            return None
        except MeshError as error:
            return Refusal(Code.ACTOR_INVOKE, f"error invoke actor method: {error}").response()
        if response.status == NOT_MINE:
            return None
        headers, token = response.headers, 0
        if headers and headers[-1][0] == FENCE:
            token = int(headers[-1][1])
            headers = headers[:-1]
        return self._accepted(call, Response(status=response.status, headers=headers, body=body), token)

    def _accepted(self, call: Call, response: Response, token: int) -> Response | None:
        """The answer, unless somebody has taken over since: then it is of no use any more."""
        newest = self._directory.place(call.actor.type, addressing.actor_partition(call.actor.id))
        return None if token and newest is not None and newest.token > token else response

    # Being called

    async def answer(self, request: Request) -> Response:
        """A call that came over the broker: a `RequestHandler`. Raises nothing but cancellation."""
        try:
            call = _read(request, await whole(request.body))
        except MeshError as error:
            return Refusal(Code.ACTOR_BAD_REQUEST, str(error)).response()
        hosting = self.hostings.get(call.actor.type)
        if hosting is None:
            return Response(status=NOT_MINE)
        try:
            response, token = await hosting.turn(call, request.caller or self._me)
        except NotMine:
            return Response(status=NOT_MINE)
        return Response(
            status=response.status,
            headers=[*response.headers, (FENCE, b"%d" % token)],
            body=response.body,
        )

    # What is there

    def active(self) -> Mapping[str, int]:
        """How many actors of each type that is hosted here are active."""
        return {name: hosting.active for name, hosting in self.hostings.items()}


def _judge(outcome: Response | Exception) -> Failure | None:
    if isinstance(outcome, Response):
        return Failure(http_status=outcome.status) if outcome.status >= 400 else None
    return Failure() if isinstance(outcome, NoOwner) else None


def _request(call: Call) -> Request:
    path = f"{call.actor.path}/method/{call.method}"
    headers = [*call.headers, (REENTRANCY, call.chain.encode("latin-1"))] if call.chain else call.headers
    return Request(method="PUT", path=f"{path}?{call.query}" if call.query else path, headers=headers, body=call.body)


@lru_cache(maxsize=256)
def _host(namespace: str, app_id: str) -> Peer:
    return addressing.actors_host(Peer(namespace, app_id))


def _read(request: Request, body: bytes) -> Call:
    """Raises `InvalidName`."""
    path, _, query = request.path.partition("?")
    parts = path.split("/", 5)
    if len(parts) != 6 or (parts[0], parts[1], parts[4]) != ("", "actors", "method"):
        raise InvalidName(f"invalid request: '{path[:80]}' names no method of an actor")
    chain, headers = "", []
    for header in request.headers:
        if header[0] == REENTRANCY:
            chain = header[1].decode("latin-1")
        else:
            headers.append(header)
    actor_type, actor_id = parts[2], parts[3]
    if "%" in path:
        actor_type, actor_id = unquote(actor_type), unquote(actor_id)
    return Call(actor_name(actor_type, actor_id), parts[5], query, headers, body, chain)
