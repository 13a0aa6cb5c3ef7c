"""Calls on a server of Kafka that lacks much: the part of the contract that asks for each record of theirs.

Not all of it: this server becomes slow with each topic that it has, of which each test makes some, and then hangs up on
hundreds of calls at once.
"""

# ruff: noqa: F401 -- what is imported is run

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.kafka_backbone import TansuBackbone
from tests.contract.test_requests import (
    join,
    namespace,
    shop,
    stock,
    test_a_call_and_its_answer_arrive_as_they_were_sent,
    test_a_call_may_ask_for_one_instance,
    test_a_caller_that_gives_up_cancels_the_handler,
    test_a_reader_that_stops_stops_the_writer,
    test_a_streamed_answer_may_pause_for_long,
    test_beyond_the_bound_of_those_that_wait_a_call_is_refused_at_once,
    test_bodies_of_any_size_arrive_byte_for_byte,
    test_instances_share_the_calls,
    test_no_call_is_lost_when_an_instance_closes_under_load,
    test_nobody_there_closes_a_body_that_was_to_be_sent,
)

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TansuBackbone]:
    started = TansuBackbone()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()
