"""The demonstration: two containers, two programs, the bridge between, in one command.

Read scenario.py first (what is shown), then echo_client.py and echo_server.py (the containers' programs).
"""
