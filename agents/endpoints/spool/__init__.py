"""A directory of files, one message each."""
