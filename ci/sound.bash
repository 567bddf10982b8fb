# For scripts at the root of the workspace: loom with our patch, which skips no
# execution. Nothing in the work tree changes.

# patched_loom DIR: loom's source, from cargo's registry copy, patched, in DIR/loom.
patched_loom() {
    local version patch source
    version=$(sed -n '/^name = "loom"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock)
    patch=$PWD/models/loom-$version.patch
    [ -e "$patch" ] || { echo "no patch for loom $version: $patch" >&2 && return 1; }
    source=$(cargo metadata --format-version 1 --locked |
        sed -n "s|.*\"manifest_path\":\"\([^\"]*/loom-$version\)/Cargo.toml\".*|\1|p")
    [ -d "$source" ] || { echo "loom's source was not found: $source" >&2 && return 1; }
    rm -rf "$1/loom"
    mkdir -p "$1"
    cp -R "$source" "$1/loom"
    # The copy is within a repository that git must not look for.
    (cd "$1/loom" && GIT_CEILING_DIRECTORIES=$1 git apply "$patch")
}

# copy_workspace DIR: the work tree as it stands; what was built in DIR stays.
copy_workspace() {
    mkdir -p "$1"
    find "$1" -mindepth 1 -maxdepth 1 ! -name target -exec rm -rf {} +
    tar -c --exclude=./target --exclude=./.git . | tar -x -C "$1"
}

# quick_builds: for many builds that each run for a moment.
quick_builds() {
    export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0
    export CARGO_PROFILE_RELEASE_INCREMENTAL=true
}
