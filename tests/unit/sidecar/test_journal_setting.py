"""`MESHWIRE_JOURNAL`: off for a sidecar alone, full below `meshwire run`, and what it is set to in both."""

import pytest

from mesh.errors import ConfigurationError
from mesh.journal.mode import JournalMode
from sidecar import flags
from sidecar.cli.launch import open_broker
from sidecar.settings import Settings


def journal(**environ):
    environ = {"MESHWIRE_BROKER": "memory", **environ}
    return Settings.from_environment(flags.parse(["--app-id=a"]), environ).journal


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", JournalMode.OFF),
        ("off", JournalMode.OFF),
        ("full", JournalMode.FULL),
        ("Sampled", JournalMode.SAMPLED),
    ],
)
def test_modes(text, mode):
    assert journal(MESHWIRE_JOURNAL=text) is mode
    assert journal() is JournalMode.OFF


def test_what_is_no_mode_is_refused():
    with pytest.raises(ConfigurationError, match=r"MESHWIRE_JOURNAL: must be off, sampled or full \(got 'on'\)"):
        journal(MESHWIRE_JOURNAL="on")


@pytest.mark.parametrize(("given", "passed_on"), [(None, "full"), ("", "full"), ("off", "off"), ("sampled", "sampled")])
def test_run_keeps_a_journal_unless_it_is_told_otherwise(monkeypatch, given, passed_on):
    monkeypatch.setenv("MESHWIRE_BROKER", "nats://localhost:4222")
    monkeypatch.delenv("MESHWIRE_JOURNAL", raising=False)
    if given is not None:
        monkeypatch.setenv("MESHWIRE_JOURNAL", given)
    assert open_broker(None).environment["MESHWIRE_JOURNAL"] == passed_on
