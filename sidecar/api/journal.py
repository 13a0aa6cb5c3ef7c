"""`GET /mesh/v1/events/{source}/{id}`: where an event is, and what became of it on its way."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from mesh.errors import ApiError, BrokerError, Code, clip
from mesh.inquiry import Inquirer, TooManyQuestions
from mesh.journal import story, testimony
from mesh.journal.testimony import Question
from sidecar.api.state import send_json
from sidecar.http.routing import Router


class JournalApi:
    def __init__(self, inquirer: Inquirer) -> None:
        """`inquirer` asks on the subject `mesh.journal.testimony.SUBJECT`; this sidecar need not have a journal."""
        self._inquirer = inquirer

    def add_to(self, router: Router) -> None:
        # Below the template of the ingress, so that its own way through the router stays the straight one.
        router.add(("GET",), "/mesh/v1/events/{source}/{id:path}", self.tell, group="mesh/journal")

    async def tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The source is one segment of the path: its slashes are written `%2F`."""
        question = Question(scope["path_params"]["source"], scope["path_params"]["id"])
        try:
            answers = await self._inquirer.ask(testimony.encode_question(question))
        except (TooManyQuestions, BrokerError) as error:
            raise ApiError(Code.JOURNAL_READ, f"the sidecars cannot be asked: {error}") from error
        told = story.tell(question, answers)
        if not told.known:
            gaps = told.content["gaps"]
            asked = len(answers.given) + len(answers.silent)
            raise ApiError(
                Code.EVENT_UNKNOWN,
                f"none of the {asked} sidecars with a journal remembers an event with the id '{clip(question.id)}' and "
                f"the source '{clip(question.source)}'" + ("" if asked else "; set MESHWIRE_JOURNAL=full for theirs"),
                extra={"gaps": gaps},
            )
        await send_json(send, told.content)
