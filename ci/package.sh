#!/usr/bin/env bash
# Packs the crates that are published and builds each from its archive alone.
# Together, since the engine needs a core that no registry has yet; as they stand,
# committed or not.
#
# In a cargo home of its own: cargo builds the engine against the core that it
# unpacks there, and one unpacked earlier under the same version and in the same place
# it takes for this one.
set -euo pipefail
cd "$(dirname "$0")/.."

home=${CARGO_HOME:-$HOME/.cargo}
own=$(mktemp -d)
trap 'rm -rf "$own"' EXIT
mkdir -p "$own/registry" "$home/registry/index" "$home/registry/cache"
ln -s "$home/registry/index" "$home/registry/cache" "$own/registry/"
for part in bin config config.toml credentials.toml; do
  [ ! -e "$home/$part" ] || ln -s "$home/$part" "$own/"
done

CARGO_HOME=$own cargo package --package uaio-core --package uaio --allow-dirty "$@"
