"""For the tests of those who build on Meshwire: a whole mesh in the test's own process (docs/testing.md).

The sidecars, their API and the way to the app are the real ones; the broker is the one in memory, and time is virtual.
pytest finds the fixture `meshwire` by itself.
"""
