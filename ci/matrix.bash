# For scripts at the root of the workspace that run every model.

# compared CHECKER COMMAND...: runs COMMAND, and holds what its models report
# against models/MATRIX.md. With UAIO_MATRIX=write the report is for ci/matrix.sh.
compared() {
    local checker=$1 report=${CARGO_TARGET_DIR:-$PWD/target}/matrix/$1.tsv
    shift
    unset UAIO_ORDER UAIO_BOUND UAIO_REPLAY
    if [ "${UAIO_MATRIX-}" = write ]; then
        "$@"
        return
    fi
    mkdir -p "${report%/*}"
    rm -f "$report"
    UAIO_REPORT=$report "$@"
    cargo run --quiet --package uaio-models --bin matrix -- check "$checker" "$report"
}
