"""Virtual actors: one turn at a time for each, wherever it lives, with nothing but the broker (docs/actors.md).

A type of actors is cut into partitions. The sidecars whose apps host the type own them under leases; each owner tells
the others of the namespace what it owns. A call goes to the owner, which queues it in the actor's mailbox and starts
its turn while it holds the lease. Whatever a turn writes depends on the token of that lease.
"""
