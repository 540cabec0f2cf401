"""The command lines of nsbridgectl, nsbridge and nsbridged as data, and what is made of it.

Read model.py first, then one of the tables (nsbridgectl.py, nsbridge.py, nsbridged.py). parse.py, helptext.py,
manpages.py and completion.py know no command by name: parser, `--help`, man pages and the completion of three shells
cannot say different things.

nsbridgectl loads model, parse and its own table for every command a person types, so these import nothing that costs
time to load.
"""
