"""The endpoints: what an agent reads messages from and writes messages to inside its container."""
