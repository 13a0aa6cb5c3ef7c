"""Apache Kafka, and servers that speak its protocol."""
