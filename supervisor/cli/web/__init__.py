"""`nsbridge web`: metrics and a page about a running daemon, from an unprivileged process that only looks."""
