#!/usr/bin/env bash
# Plants the errors of models/mutants/, one at a time, and demands of each that it
# kills the models that it names, on loom with our patch. That the same models pass
# without it is what `ci/loom.sh --sound` shows.
#
# `Killed by: MODEL` in a mutant means by an assertion of the model's own. Where
# only the checker can notice, it says how: `Killed by: MODEL (deadlock)`, `(access)`
# for one that nothing orders, or to what is gone, `(leak)`.
#
# Arguments: the names of mutants, without .patch; all by default. Fails when a
# mutant survives, or a model fails in another way (UNCLEAR); and when a mutant does
# not apply or compile, or names no model.
#
# Two mutants at a time, each in a copy of the workspace, built in place, and of the
# models' modules only those that the mutant names, for building takes most of the time.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
-h | --help) echo "usage: $0 [MUTANT...]" && exit ;;
esac

if [ $# -gt 0 ]; then
    mutants=("$@")
else
    mutants=(models/mutants/*.patch)
    mutants=("${mutants[@]##*/}")
    mutants=("${mutants[@]%.patch}")
fi
for mutant in "${mutants[@]}"; do
    [ -e "models/mutants/$mutant.patch" ] || { echo "no such mutant: $mutant" >&2 && exit 2; }
done

target=${CARGO_TARGET_DIR:-$PWD/target}/mutants
. ci/sound.bash
patched_loom "$target"

quick_builds
export RUSTFLAGS='--cfg loom -Awarnings' UAIO_SOUND=1

# All below runs in a copy of the workspace.

# The copy is within a repository that git must not look for.
apply() {
    GIT_CEILING_DIRECTORIES=$target git apply "$@"
}

# The tests' executable; what cargo says is in the file `log`.
build() {
    cargo test --color never --config "patch.crates-io.loom.path='$target/loom'" \
        --release --package uaio-models --lib --no-run 2>log || return
    sed -n 's/^ *Executable .*(\(.*\))$/\1/p' log
}

# Fails when a model does. One that hangs out of loom's sight fails, too.
models() {
    timeout 300 "$binary" --test-threads=1 --exact "$@" </dev/null >log 2>&1
}

killers() {
    sed -n 's/^Killed by: //p' "models/mutants/$1.patch"
}

# only MODULE...: leaves the other modules of models empty.
only() {
    local modules
    modules=$(IFS='|' && echo "$*")
    sed -E "/^mod ($modules);/!s/^mod (.*);/mod \1 {}/" lib.rs >models/src/lib.rs
}

# Those of a mutant's models, and those whose parts they use.
modules_of() {
    local module
    killers "$1" | sed 's/::.*//' | sort -u | while read -r module; do
        echo "$module"
        sed -n '/^use crate::{/,/^};/s/^    \([a-z]*\)::.*/\1/p' "models/src/$module.rs"
    done | sort -u
}

# Where the first panic of the log was, and what it said, in one line.
first_panic() {
    sed -n '/panicked at /{s/.*panicked at //;N;s/:\n/ /p;q}' log
}

# How a model failed, by its first panic. An `expect` says what it claims; an index
# or an `unwrap` that fails claims nothing.
way() {
    local place=${1%%:*} line=${1#*:}
    case $1 in
    models/src/harness*) echo harness ;;
    models/src/*)
        case $(sed -n "${line%%:*}p" "$place") in
        *assert*'('* | *panic!* | *'.expect('*) echo assertion ;;
        *) echo unclear ;;
        esac
        ;;
    *' deadlock; '*) echo deadlock ;;
    *' Causality violation: '* | core/src/sync/*) echo access ;;
    *' leaked.'*) echo leak ;;
    *) echo unclear ;;
    esac
}

report() {
    printf '%-9s %-40s %s\n' "$@"
}

judge() {
    local mutant=$1 killer model way panic modules
    mapfile -t modules < <(modules_of "$mutant")
    only "${modules[@]}"
    if ! apply "models/mutants/$mutant.patch"; then
        report UNAPPLIED "$mutant" ''
        return
    fi
    if ! binary=$(build); then
        report UNBUILT "$mutant" "$(grep -m1 '^error' log)"
    else
        while read -r killer; do
            model=${killer%% *} way='(assertion)'
            [ "$killer" = "$model" ] || way=${killer#* }
            if models "$model"; then
                report SURVIVED "$mutant" "$killer"
                continue
            fi
            panic=$(first_panic)
            if [ "($(way "$panic"))" = "$way" ]; then
                report killed "$mutant" "$killer: $panic"
            else
                report UNCLEAR "$mutant" "$killer: ${panic:-$(tail -n1 log)}"
            fi
        done < <(killers "$mutant")
    fi
    apply --reverse "models/mutants/$mutant.patch"
}

# The next mutant that no worker has taken; fails when there is none.
next() {
    flock 9
    read -r mutant <&8
    local left=$?
    flock -u 9
    return "$left"
}

# worker DIR: mutants in a copy in DIR, one after the other.
worker() {
    local mutant
    # Each opens its own, or it would not keep the other out.
    exec 9>"$target/lock"
    copy_workspace "$1"
    cd "$1"
    # An interrupted build leaves it broken.
    rm -rf target/release/incremental
    export CARGO_TARGET_DIR=$1/target
    cp models/src/lib.rs lib.rs
    while next; do
        judge "$mutant"
    done
}

demanded=0
for mutant in "${mutants[@]}"; do
    kills=$(killers "$mutant" | wc -l)
    [ "$kills" -gt 0 ] || { echo "names no model: $mutant" >&2 && exit 2; }
    demanded=$((demanded + kills))
done

# Those of the same modules after each other, whose builds have the most in common.
for mutant in "${mutants[@]}"; do
    echo "$(modules_of "$mutant" | paste -sd,) $mutant"
done | sort | sed 's/.* //' >"$target/queue"
{
    # One open file: who reads a line moves the others on.
    exec 8<"$target/queue"
    worker "$target/1" &
    worker "$target/2" &
    wait
} | tee "$target/results"

# What was not reached is not killed.
killed=$(grep -c '^killed ' "$target/results" || true)
survived=$((demanded - killed))
echo "mutants: ${#mutants[@]} planted, $demanded kills checked, $survived not killed"
[ "$survived" = 0 ]
