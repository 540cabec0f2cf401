#!/bin/sh
# The unit tests once more, where little is as usual: a machine that has been up for 20 s (time_namespaces(7)), LC_ALL=C,
# a time zone beyond the date line, and an order by chance, whose seed pytest prints (again: --randomly-seed=N).
# Then those that need no root, as another user. ARGS are pytest's. What looks at the texts of the tree, and runs nothing of
# it, is left out.
set -eu
cd "$(dirname "$0")/.."

uptime=$(cut -d. -f1 /proc/uptime)
offset=$((20 - uptime))
python=$PWD/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
texts=
for name in house words citations security_md troubleshooting layers; do texts="$texts --ignore=tests/unit/test_$name.py"; done

# shellcheck disable=SC2086  # a list of words
LC_ALL=C TZ=Pacific/Apia unshare --fork --time --monotonic "$offset" --boottime "$offset" \
    "$python" -m pytest -p randomly --numprocesses=4 $texts "$@" tests/unit </dev/null

# dac_read_search: Python and the tree may be where another user may not look.
chmod 755 "$work"
install -d -o 65534 "$work/tmp"
LC_ALL=C TZ=Pacific/Apia HOME=$work/tmp setpriv --reuid=65534 --regid=65534 --clear-groups \
    --inh-caps=+dac_read_search --ambient-caps=+dac_read_search \
    "$python" -m pytest -p randomly -p no:cacheprovider --basetemp="$work/tmp/pytest" "$@" \
    tests/unit/test_config_*.py </dev/null
