#!/bin/bash
# One conversion on machines that are reached by ssh: infra/ray/machines.sh "node-1 node-2" convert s3://... s3://...
# This machine leads, and takes workers too. Every machine has reshard[ray], found by a shell that ssh starts.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 \"HOST ...\" convert SRC DST [OPTION ...]" >&2
    exit 2
fi
others=$1
shift
port=${RAY_PORT:-6379}
here=$(hostname --ip-address)
here=${here%% *}

stop() {
    for host in $others; do
        ssh "$host" ray stop || true
    done
    ray stop
}
trap stop EXIT

ray start --head --node-ip-address="$here" --port="$port"
for host in $others; do
    ssh "$host" ray start --address="$here:$port"
done
reshard "$@" --engine ray --ray-address "$here:$port"
