"""Whole sidecars on Apache Kafka: what they do on NATS. These tests are written once, for any broker.

What differs by design is not among them: Kafka knows no repeats, and gives a message to the member that has its
partition, not to any that has room.
"""

# ruff: noqa: F401 -- what is imported is run

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Mesh
from tests.e2e.test_configuration import test_what_one_app_sets_others_are_told
from tests.e2e.test_invoke import (
    echo,
    pair,
    pool,
    shared,
    test_a_client_that_hangs_up_cancels_the_call,
    test_an_app_that_nobody_knows,
    test_answers_come_back_as_they_were_sent,
    test_each_app_gets_its_own_token,
    test_nobody_speaks_in_anothers_name,
    test_requests_arrive_as_they_were_sent,
    test_server_sent_events_come_one_by_one_and_hanging_up_reaches_the_app,
    test_uploads_of_any_length_arrive,
)
from tests.e2e.test_operating_bindings import (
    test_an_app_that_fails_gets_an_item_again_and_what_it_never_takes_is_a_dead_letter,
)
from tests.e2e.test_pubsub import (
    test_dead_letters_keep_their_bytes_and_tell_why,
    test_events_arrive_with_attributes_and_data_as_sent,
    test_expired_events_are_not_delivered,
    test_group_keeps_its_place_over_a_restart_of_everything,
    test_raw_bytes_in_and_out,
    test_replicas_share_and_apps_each_get_all,
    test_retry_brings_the_same_bytes_again_and_drop_does_not,
    test_unhealthy_app_gets_nothing_until_it_is_well_again,
)
from tests.e2e.test_replay import (
    test_a_redrive_goes_on_after_a_kill,
    test_the_last_hour_to_a_second_app_while_live_traffic_flows,
)
from tests.e2e.test_schedules import (
    test_actors_are_woken_by_reminders_and_timers_until_they_end_or_are_deleted,
    test_series_of_jobs_and_events_go_on_until_they_end_or_are_deleted,
    test_the_command_line,
    test_what_was_scheduled_before_everything_died_happens_after_it_came_back,
)
from tests.e2e.test_shutdown import test_it_takes_nothing_new_while_others_hold_it_up
from tests.e2e.test_state import (
    test_a_broker_that_is_away,
    test_an_outbox_survives_the_sudden_end_of_its_sidecar,
    test_replicas_share_state_and_apps_do_not,
    test_state_outlives_everything,
)
from tests.e2e.test_state_watch import test_a_watch_goes_on_when_the_server_is_back
from tests.e2e.test_where_and_control import (
    test_a_story_over_two_apps_is_told_by_any_sidecar,
    test_what_is_set_holds_for_both_replicas_and_over_a_restart,
)
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def server() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def mesh(tmp_path: Path, server: ApacheKafka) -> AsyncIterator[Mesh]:
    if not server.pid:  # a test that failed has left it so
        server.start()
    async with Mesh(tmp_path, server) as mesh:
        yield mesh
