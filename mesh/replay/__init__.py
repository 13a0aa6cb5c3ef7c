"""Replay: stored events delivered once more, beside the live subscription and without touching it (docs/replay.md)."""
