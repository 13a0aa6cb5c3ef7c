"""`GET /mesh/v1/events/{source}/{id}`: where an event is, and what became of it on its way."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send

from mesh.dead_letters.inbox import Inbox
from mesh.dead_letters.selection import Filter
from mesh.errors import ApiError, BrokerError, Code, clip
from mesh.inquiry import Inquirer, TooManyQuestions
from mesh.journal import story, testimony
from mesh.journal.steps import What
from mesh.journal.story import Story
from mesh.journal.testimony import Question
from sidecar.api.state import send_json
from sidecar.api.strict import shown_time
from sidecar.http.routing import Router

LETTERS_LIMIT = 2.0
"""Seconds for the look into the dead letters."""
MOST_LETTERS = 100


class JournalApi:
    def __init__(self, inquirer: Inquirer, inbox: Inbox) -> None:
        """`inquirer` asks on the subject `mesh.journal.testimony.SUBJECT`; this sidecar need not have a journal.
        `inbox` has the dead letters of its app, which outlive what journals remember."""
        self._inquirer = inquirer
        self._inbox = inbox

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
        letters = await self._letters(question, told)
        if letters:
            told.content["deadLetters"] = letters
        elif not told.known:
            gaps = told.content["gaps"]
            asked = len(answers.given) + len(answers.silent)
            raise ApiError(
                Code.EVENT_UNKNOWN,
                f"none of the {asked} sidecars with a journal remembers an event with the id '{clip(question.id)}' and "
                f"the source '{clip(question.source)}'" + ("" if asked else "; set MESHWIRE_JOURNAL=full for theirs"),
                extra={"gaps": gaps},
            )
        await send_json(send, told.content)

    async def _letters(self, question: Question, told: Story) -> list[dict[str, Any]]:
        """The dead letters of this app that the event is, where its story leaves that open."""
        if told.known and not any(line["what"] == What.DEAD_LETTERED.value for line in told.content["steps"]):
            return []
        try:
            async with asyncio.timeout(LETTERS_LIMIT):
                page = await self._inbox.page(Filter(source=question.source, id=question.id), limit=MOST_LETTERS)
        except (BrokerError, TimeoutError):
            told.content["complete"] = False
            told.content.setdefault("gaps", []).append("the dead letters of this app could not be looked through")
            return []
        return [
            {
                "id": letter.id,
                "pubsubname": letter.subscription.pubsub,
                "topic": letter.subscription.name,
                "reason": letter.row.reason.value,
                "attempts": letter.row.attempts,
                "time": shown_time(letter.row.died),
            }
            for letter in page.letters
        ]
