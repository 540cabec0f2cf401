# What nsbridge uses of python-daemon 3.1, which has no types of its own.
from .daemon import DaemonContext as DaemonContext
