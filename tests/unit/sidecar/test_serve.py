import gc
import weakref

from sidecar.serve import leave_out_of_collections


class Node:
    """What an earlier run leaves: it refers to itself, so that only the collector can free it."""

    def __init__(self):
        self.itself = self


def test_what_an_earlier_run_left_is_freed_at_the_next_one():
    node = Node()
    gone = weakref.ref(node)
    try:
        leave_out_of_collections()
        del node
        gc.collect()
        assert gone() is not None
        leave_out_of_collections()
        assert gone() is None
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
