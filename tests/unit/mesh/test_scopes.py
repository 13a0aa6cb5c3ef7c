import pytest

from mesh.errors import ConfigurationError
from mesh.scopes import TopicScopes

SCOPES = {"publishingScopes": "app1=t1, t2 ;app2=t3;app3=", "subscriptionScopes": "app1=t9;app1=t8"}


def test_without_metadata_everything_may_be_used() -> None:
    scopes = TopicScopes.from_metadata({"redisHost": "localhost"})
    assert scopes.may_publish("app", "t")
    assert scopes.may_subscribe("app", "t")


@pytest.mark.parametrize(
    ("metadata", "app", "topic", "allowed"),
    [
        (SCOPES, "app1", "t1", True),
        (SCOPES, "app1", "t2", True),
        (SCOPES, "app1", "t3", False),
        (SCOPES, "app3", "t1", False),
        (SCOPES, "other", "t1", True),
        (SCOPES, "APP1", "t3", True),  # keys fold case, app ids do not
        ({"allowedTopics": "t1,t2"}, "app", "t1", True),
        ({"allowedTopics": "t1,t2"}, "app", "t3", False),
        ({"allowedTopics": " , "}, "app", "t3", True),
        ({"ALLOWEDTOPICS": "t1"} | SCOPES, "app1", "t2", False),
        ({"protectedTopics": "t1"}, "app", "t1", False),
        ({"protectedTopics": "t1"}, "app", "t2", True),
        ({"protectedTopics": "t1"} | SCOPES, "app1", "t1", True),
        ({"protectedTopics": "t1"} | SCOPES, "app2", "t1", False),
        ({"PublishingSCOPES": "a=t"}, "a", "u", False),
    ],
)
def test_publish(metadata: dict[str, str], app: str, topic: str, allowed: bool) -> None:
    assert TopicScopes.from_metadata(metadata).may_publish(app, topic) is allowed


def test_subscribing_has_its_own_list_and_repeated_apps_add_up() -> None:
    scopes = TopicScopes.from_metadata(SCOPES)
    assert scopes.may_subscribe("app1", "t8")
    assert scopes.may_subscribe("app1", "t9")
    assert not scopes.may_subscribe("app1", "t1")
    assert scopes.may_subscribe("app2", "t1")


@pytest.mark.parametrize(
    ("metadata", "pattern", "allowed"),
    [
        ({}, ">", True),
        ({"protectedTopics": "pay.secret"}, ">", False),
        ({"protectedTopics": "pay.secret"}, "pay.*", False),
        ({"protectedTopics": "pay.secret"}, "orders.*", True),
        ({"protectedTopics": "pay.secret", "subscriptionScopes": "app=pay.*"}, "pay.*", True),
        ({"subscriptionScopes": "app=pay.secret"}, "pay.*", False),
        ({"allowedTopics": "a.b"}, "a.*", False),
        ({"allowedTopics": "a.*"}, "a.*", True),
    ],
)
def test_a_pattern_is_no_way_around_a_scope(metadata: dict[str, str], pattern: str, allowed: bool) -> None:
    assert TopicScopes.from_metadata(metadata).may_subscribe("app", pattern) is allowed


@pytest.mark.parametrize("text", ["app1", "app1=t1;app2", "=t1", "app1=t1=t2", " = "])
def test_a_scope_that_would_be_passed_over_is_an_error(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"metadata\.subscriptionScopes: must look like"):
        TopicScopes.from_metadata({"subscriptionScopes": text})
