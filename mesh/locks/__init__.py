"""Distributed locks, by Dapr's rules, and with fencing tokens where the store can (docs/locks.md)."""
