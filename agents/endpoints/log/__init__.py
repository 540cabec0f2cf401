"""A file that programs append to."""
