"""Maps the three top-level directories to `nsbridge.*` (docs/architecture.md says why); all else: pyproject.toml."""

from setuptools import setup

PACKAGES = ["supervisor", "supervisor.demo", "agents", "agents.endpoints", "config"]

setup(
    packages=[f"nsbridge.{name}" for name in PACKAGES],
    package_dir={f"nsbridge.{name}": name.replace(".", "/") for name in PACKAGES},
    package_data={"nsbridge.config": ["example.toml"]},
)
