#!/usr/bin/python3 -sP
"""Starts a command of nsbridge, with the packages that it brings along."""

import sys

sys.path.insert(0, "/usr/lib/nsbridge")

from nsbridge.supervisor.cli.@command@ import main

sys.exit(main())
