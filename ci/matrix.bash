# For scripts at the root of the workspace that run every model.

# compared CHECKER COMMAND...: runs COMMAND, and holds what its models report
# against models/MATRIX.md. Where UAIO_REPORT is set, the report is for the caller.
compared() {
    local checker=$1 report=${CARGO_TARGET_DIR:-$PWD/target}/matrix/$1.tsv
    shift
    if [ -n "${UAIO_REPORT-}" ]; then
        "$@"
        return
    fi
    mkdir -p "${report%/*}"
    rm -f "$report"
    UAIO_REPORT=$report "$@"
    cargo run --quiet --package uaio-models --bin matrix -- check "$checker" "$report"
}
