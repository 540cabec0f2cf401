"""The supervisor: forks the agents, watches them and their containers, answers the control socket."""
