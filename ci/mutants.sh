#!/usr/bin/env bash
# Plants the errors of models/mutants/, one at a time, in a scratch copy of the
# workspace, and demands of each that the model it names fails under loom. The
# same models have to pass without it.
#
# Arguments: the names of mutants, without .patch; all by default. Fails when a
# mutant survives, does not apply, or does not compile.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
-h | --help) echo "usage: $0 [MUTANT...]" && exit ;;
esac

target=${CARGO_TARGET_DIR:-$PWD/target}/mutants
scratch=$target/workspace
log=$target/log
export CARGO_TARGET_DIR=$target RUSTFLAGS='--cfg loom'

if [ $# -gt 0 ]; then
    patches=("${@/%/.patch}")
else
    patches=(models/mutants/*.patch)
fi
patches=("${patches[@]/#models\/mutants\//}")

rm -rf "$scratch"
mkdir -p "$scratch"
tar -c --exclude=./target --exclude=./.git . | tar -x -C "$scratch"
cd "$scratch"

# The scratch copy is within a repository that git must not look for.
apply() {
    GIT_CEILING_DIRECTORIES=$target git apply "$@"
}

killer() {
    sed -n 's/^Killed by: //p' "models/mutants/$1"
}

build() {
    cargo test --quiet --package uaio-models --lib --no-run
}

# Fails when a model does. A model that hangs outside of loom's sight fails too.
model() {
    timeout 600 cargo test --quiet --package uaio-models --lib -- --exact "$@"
}

models=()
for patch in "${patches[@]}"; do
    models+=("$(killer "$patch")")
done
echo 'mutants: the models that are to fail, without an error to find'
build
model "${models[@]}"

survivors=0
report() {
    printf 'mutants: %-9s %-28s %s\n' "$@"
}
for patch in "${patches[@]}"; do
    name=${patch%.patch} model=$(killer "$patch")
    if ! apply "models/mutants/$patch"; then
        report UNAPPLIED "$name" "$model"
        exit 1
    fi
    if ! build >"$log" 2>&1; then
        cat "$log"
        report UNBUILT "$name" "$model"
        survivors=$((survivors + 1))
    elif model "$model" >"$log" 2>&1; then
        report SURVIVED "$name" "$model"
        survivors=$((survivors + 1))
    elif ! why=$(grep -m1 -A1 "^$model, .*panicked at" "$log"); then
        cat "$log"
        report UNCLEAR "$name" "$model"
        survivors=$((survivors + 1))
    else
        report killed "$name" "$model: $(tail -n1 <<<"$why")"
    fi
    apply --reverse "models/mutants/$patch"
done

echo "mutants: ${#patches[@]} planted, $survivors not killed"
[ "$survivors" = 0 ]
