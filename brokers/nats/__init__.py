"""NATS JetStream: the event log, and the server that `meshwire run` brings along."""
