"""The life of one agent: its states, its process, its restarts."""
