"""The API on Apache Kafka: what of it goes through the broker. These tests are written once, for any broker."""

# ruff: noqa: F401, F811 -- what is imported is run

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest

from tests.api.conftest import Api, Start
from tests.api.test_bulk_subscribe import test_events_of_one_call_have_outcomes_of_their_own
from tests.api.test_dead_letters_api import (
    failing,
    test_from_the_failure_to_the_app_that_is_mended,
    test_lists_counts_and_purges,
    test_what_is_no_event_is_shown_as_it_is,
)
from tests.api.test_events_api import test_accepted_events_arrive_as_they_are
from tests.api.test_input_bindings import (
    test_cron,
    test_deliveries_are_listed_and_steered,
    test_items_are_replayed,
    test_items_wait_for_an_app_that_was_never_there,
    test_the_journal_tells_of_items,
    test_webhooks_are_checked,
    test_what_is_given_up_can_be_sent_again,
)
from tests.api.test_journal_api import (
    test_bulk_and_binary_events_are_told_of_too,
    test_filtered_expired_and_dead_lettered,
)
from tests.api.test_publish_bulk import app, subscribed, test_each_entry_is_an_event_of_its_own
from tests.api.test_pull_api import (
    api,
    test_a_client_that_waits_is_answered_when_there_is_something,
    test_a_pulled_event_has_a_story,
    test_an_event_is_pulled_and_acknowledged,
    test_results_are_told_for_each_token,
    test_what_the_app_is_sent_cannot_be_pulled_away_from_it,
)
from tests.api.test_replays_api import (
    serving,
    test_cancel,
    test_of_the_last_hour,
    test_to_another_app,
)
from tests.api.test_subscriptions_api import test_drain_tells_when_nothing_is_in_hand, test_pause_and_resume
from tests.e2e.mesh import App, subscription, until
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]

prefixes = (f"api{number}" for number in count(1))


@pytest.fixture(scope="module")
def kafka() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def start(kafka: ApacheKafka, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Start]:
    """As that of the other tests, with a mesh for each test, where events without a key come in order too; returns when
    the app is a member of its groups."""
    caplog.set_level("INFO", logger="meshwire")
    broker = {"MESHWIRE_BROKER": kafka.url, "MESHWIRE_PREFIX": next(prefixes), "MESHWIRE_KAFKA_PARTITIONS": "1"}
    started: list[Api] = []

    async def start(*arguments: str, app: App | None = None, **environ: str) -> Api:
        before = len(caplog.records)
        started.append(Api(*arguments, app=app, environ=broker | environ))
        await started[-1].ready()
        for topic in [] if app is None or not isinstance(app.subscribe, list) else app.subscribe:
            told = f"app is subscribed to the following topics: [{topic['topic']}]"
            await until(
                lambda told=told: any(told in record.getMessage() for record in caplog.records[before:]),  # type: ignore[misc]
                lambda told=told: f"not {told}",  # type: ignore[misc]
            )
        return started[-1]

    yield start
    for each in started:
        if not each.running.done():
            await each.stop()


async def test_a_pattern_is_refused_with_what_the_broker_cannot(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Others that the app wants stand."""
    wanted = json.dumps([subscription("orders.*"), subscription("B")]).encode()
    async with App(wanted) as asking:
        api = await start(app=asking)
        await until(lambda: "topics: [B]" in caplog.text, lambda: caplog.text)
        assert "topic orders.* has a wildcard: the broker of this component cannot: subscribes to many" in caplog.text
        await api.publish(b"1", topic="B")
