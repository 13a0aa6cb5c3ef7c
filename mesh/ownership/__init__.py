"""Ownership: leases of one thing, and partitions of many shared among members (docs/ownership.md).

Everything stands on two kinds of records in a table. A *member* record is a sign of life: it has a TTL, and its writer
renews it. An *owner* record names the member that owns something; it never expires, and its revision, the same for the
whole tenure, is the fencing token. An owner record may be taken over in a commit that checks that the member it names
is absent. So whoever writes with its token as a precondition writes only as long as nobody has taken over.
"""

from mesh.ownership.lease import Lease
from mesh.ownership.partitions import PartitionHandler, Partitions

__all__ = ["Lease", "PartitionHandler", "Partitions"]
