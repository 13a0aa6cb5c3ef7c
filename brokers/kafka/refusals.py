"""What Kafka's servers refuse, and what aiokafka says of it, in our words."""

from __future__ import annotations

import aiokafka.errors as errors

from mesh.errors import BrokerError, BrokerUnavailable, clip

LONGEST_REASON = 300
"""Characters of what a server or aiokafka says that we repeat."""

_REFUSED = (
    errors.SaslAuthenticationFailed,
    errors.AuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.TransactionalIdAuthorizationFailed,
    errors.InvalidTopicError,
    errors.PolicyViolationError,
)

_FORBIDDEN = {
    errors.TopicAuthorizationFailedError: "the topic",
    errors.GroupAuthorizationFailedError: "the group",
}


def translated(error: Exception) -> BrokerError:
    """An error of aiokafka's as ours: refused for good, or not available at the moment."""
    text = clip(" ".join(str(error).split()) or type(error).__name__, LONGEST_REASON)
    if isinstance(error, errors.NodeNotReadyError) or "Unable to bootstrap" in text:
        return BrokerUnavailable("there is no connection to Kafka: the health and the log of the sidecar tell why")
    if isinstance(error, errors.MessageSizeTooLargeError):
        return BrokerError(f"Kafka takes no message of this size: {text}")
    for kind, what in _FORBIDDEN.items():
        if isinstance(error, kind):
            name = clip(" ".join(str(arg) for arg in error.args), LONGEST_REASON)
            return BrokerError(
                f"Kafka refused: this user lacks a right to {what} {name}; `meshwire acl kafka` lists all"
            )
    if isinstance(error, _REFUSED):
        return BrokerError(f"Kafka refused: {text}")
    return BrokerUnavailable(f"Kafka: {text}")
