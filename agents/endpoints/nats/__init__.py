"""The `nats` endpoint: messages from and to NATS JetStream, on the host itself."""
