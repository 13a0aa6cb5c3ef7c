"""The core of Meshwire: events, ports, building blocks and policies. Knows no network library."""

__version__ = "0.1.0"
