#!/bin/sh
# Runs one command through a sidecar, from a shell.
#
#     runner.sh SIDECAR DOCUMENT COMMAND ...
#
# COMMAND finds the port in SSM_SIDECAR_PORT. Ends with the command's status, or with the sidecar's
# when there was no tunnel.
set -eu
sidecar=$1 document=$2
shift 2

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
mkfifo "$directory/in" "$directory/out"

# Started before we open the pipes, so the sidecar does not inherit our end of its lease.
"$sidecar" <"$directory/in" >"$directory/out" &
pid=$!
exec 3>"$directory/in" 4<"$directory/out"

# The document only; the pipe stays open, and open it is the job's lease.
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

# The end of the lease; the tunnel closes and its session is terminated.
exec 3>&-
ended=0
wait "$pid" || ended=$?
[ "$status" -ne 0 ] || status=$ended
exit "$status"
