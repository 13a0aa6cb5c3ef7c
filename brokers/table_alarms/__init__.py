"""The Alarms port over any `Tables`, for brokers that hold no messages until they are due (docs/adr/0012-kafka.md).

An alarm is an entry of a table. Members that serve a kind share its alarms among them by `mesh.ownership`: each follows
the table, keeps by heart when what is due, and hands out what is due and its own. What becomes of it is one change of
the entry that depends on its revision.
"""

from brokers.table_alarms.alarms import TableAlarmClocks, TableAlarms
from brokers.table_alarms.member import TableAlarmSubscription

__all__ = ["TableAlarmClocks", "TableAlarmSubscription", "TableAlarms"]
