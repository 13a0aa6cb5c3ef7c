"""What happens later, once or again and again: the arithmetic of due times, and the scheduler over alarms."""
