"""What every test shares: in CI Hypothesis draws nothing by chance, and a slow machine decides no outcome anywhere."""

from __future__ import annotations

import os

from hypothesis import settings

import nsbridge.supervisor.containers.engines  # noqa: F401  (it registers the kinds that configurations may name)

for name in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[name]  # PYTHONUNBUFFERED in a shell, for one, hides what goes wrong when output is flushed at exit

settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
