import gc
import weakref

import pytest

from sidecar.serve import COLLECT_AFTER, main, tune_collector


@pytest.mark.parametrize("argument", ["--app-id=a b", "--dapr-http-port=x", "--app-port=3500", "--log-level=loud"])
def test_a_bad_flag_is_wrong_use(argument, capsys):
    flags = [argument] if "app-id" in argument else ["--app-id=shop", argument]
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"meshwire sidecar: {argument.partition('=')[0]}: must ")


class Node:
    """What an earlier run leaves: it refers to itself, so that only the collector can free it."""

    def __init__(self):
        self.itself = self


def test_what_an_earlier_run_left_is_freed_at_the_next_one():
    node = Node()
    gone = weakref.ref(node)
    threshold = gc.get_threshold()
    try:
        tune_collector()
        del node
        gc.collect()
        assert gone() is not None
        tune_collector()
        assert gone() is None
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] == COLLECT_AFTER
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
