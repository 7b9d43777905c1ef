#!/bin/sh
# Runs one command through a sidecar, from a shell.
#
#     runner.sh SIDECAR CONFIG COMMAND ...
#
# CONFIG is a file with the sidecar's config. COMMAND gets the port in SSM_SIDECAR_PORT. Exits with the
# command's status, or without a tunnel with the sidecar's.
set -eu
sidecar=$1 document=$2
shift 2

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
mkfifo "$directory/in" "$directory/out"

# Started before the pipes are opened, so that the sidecar does not inherit the write end of its lease.
"$sidecar" <"$directory/in" >"$directory/out" &
pid=$!
exec 3>"$directory/in" 4<"$directory/out"

# The config and nothing after it. The pipe stays open: that is the job's lease.
cat "$document" >&3

port=
while read -r word rest <&4; do
    case $word in
    ready) port=${rest%% *} && break ;;
    failed) echo "no tunnel: $rest" >&2 && break ;;
    esac
done

status=0
if [ -n "$port" ]; then
    SSM_SIDECAR_PORT=$port "$@" 3>&- 4<&- || status=$?
fi

# Ends the lease: the tunnel closes, and its session is terminated.
exec 3>&-
ended=0
wait "$pid" || ended=$?
[ "$status" -ne 0 ] || status=$ended
exit "$status"
