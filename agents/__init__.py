"""An agent: the process that lives in one namespace of one container and serves one endpoint there."""
