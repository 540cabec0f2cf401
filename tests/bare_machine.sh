#!/bin/sh
# README's commands in a new Debian system: tests/bare_machine.sh [ARGUMENTS OF ./run], as root, such as
#   tests/bare_machine.sh demo hello
#   TREE=/var/tmp/minbase ENTER=pivot tests/bare_machine.sh test tests/unit
# The system has python3, git and ca-certificates and nothing else; in it is a fresh clone of what is committed here.
# It is entered with mount, pid and ipc namespaces of its own. TREE: a debootstrap tree, which is copied (else one is made).
# ENTER: chroot (the tree's root is then no mount point, as runc wants it), pivot (it is one) or bare (chroot, no cgroups).
# KEEP=1: leave the copy there afterwards. The network, apt's, pip's and the certificates' settings are this machine's.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

make_tree() {
    if [ -n "${TREE:-}" ]; then
        cp -a "$TREE/." "$1"
    else
        debootstrap --variant=minbase --include=python3,git,ca-certificates bookworm "$1" >"$work/debootstrap.log"
    fi
    for path in etc/apt etc/pip.conf etc/resolv.conf etc/hosts etc/ssl/certs/ca-certificates.crt; do
        if [ -e "/$path" ]; then tar -C / -ch "$path" | tar -C "$1" -x; fi
    done
    mkdir -p "$1/root/.config" "$1/mnt"
    if [ -e "$HOME/.config/pip" ]; then cp -a "$HOME/.config/pip" "$1/root/.config/"; fi
    git clone --quiet --no-hardlinks "$here" "$1/root/nsbridge"
}

# Run as the first process of the new namespaces: enter ENTER TREE ARGUMENTS…
enter() {
    how=$1 tree=$2
    shift 2
    if [ "$how" = pivot ]; then mount --bind "$tree" "$tree"; fi
    mount -t proc proc "$tree/proc"
    mount --rbind /dev "$tree/dev"
    if [ "$how" = bare ]; then mount -t sysfs sysfs "$tree/sys"; else mount --rbind /sys "$tree/sys"; fi
    if [ -d /opt ]; then mount --rbind /opt "$tree/opt"; fi # package indexes that pip's settings may name
    cd "$tree"
    if [ "$how" = pivot ]; then
        mkdir -p old
        pivot_root . old
        umount -l old
    fi
    # shellcheck disable=SC2046  # names and values without blanks
    exec env -i HOME=/root TERM=dumb LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        $(env | grep -E '^(PIP_|SSL_|REQUESTS_CA|CURL_CA|NODE_EXTRA_CA|https?_proxy|no_proxy)[A-Za-z_]*=[^ ]*$') \
        chroot . /bin/sh -c 'cd /root/nsbridge && exec ./run "$@"' sh "$@" </dev/null
}

if [ "${1:-}" = enter ]; then
    shift
    enter "$@"
fi
work=$(mktemp -d /var/tmp/nsbridge-bare.XXXXXX)
[ -n "${KEEP:-}" ] || trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM
mkdir "$work/tree"
make_tree "$work/tree"
printf 'bare_machine.sh: ./run %s in %s (%s)\n' "$*" "$work/tree" "${ENTER:-chroot}"
unshare --mount --pid --ipc --fork "$here/tests/bare_machine.sh" enter "${ENTER:-chroot}" "$work/tree" "$@"
