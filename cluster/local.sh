#!/usr/bin/env bash
# Several Ray nodes on this machine, for development and tests (Linux).
#
#   cluster/local.sh up [NODES=2] [CPUS=2]   start a head and NODES-1 more nodes of CPUS logical CPUs each
#   cluster/local.sh env                     the variables that point every command at it: eval "$(cluster/local.sh env)"
#   cluster/local.sh down                    end every process that `up` and the jobs have started
#
# GRAFT_CLUSTER  folder of its state and logs (/tmp/graft-cluster); with other ports, another cluster beside it
# RAY_PORT       port of the head (6379)         RAY_DASHBOARD_PORT  port of the dashboard and Jobs API (8265)
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STATE=${GRAFT_CLUSTER:-/tmp/graft-cluster}
PORT=${RAY_PORT:-6379}
DASHBOARD=${RAY_DASHBOARD_PORT:-8265}
OBJECT_STORE_BYTES=150000000
SECONDS_TO_START=90
SECONDS_TO_END=3
PIDS=()
[ ! -x "$REPO/.venv/bin/ray" ] || PATH=$REPO/.venv/bin:$PATH

fail() { echo "error: $1" >&2; exit "${2:-1}"; }

# Every process of the cluster, and of a job in it, inherits the mark: its own processes are found by that, and no other.
ours() {
    [ -s "$STATE/mark" ] || return 0
    (cd /proc && grep -lsxzF "GRAFT_CLUSTER_MARK=$(cat "$STATE/mark")" [0-9]*/environ || true) | cut -d/ -f1
}

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

check() {
    [[ $NODES =~ ^[1-9][0-9]?$ && $CPUS =~ ^[1-9][0-9]{0,2}$ ]] ||
        fail "up $NODES $CPUS: give NODES (1 to 99) and CPUS of each (1 to 999), for example: cluster/local.sh up 2 2" 2
    command -v ray >/dev/null || fail "ray is not on the PATH and not in $REPO/.venv; run make setup" 2
    # Ray keeps Unix sockets below it, and the path of one has at most 107 characters.
    [[ $STATE == /* && ${#STATE} -le 32 ]] || fail "GRAFT_CLUSTER=$STATE: give an absolute path of at most 32 characters" 2
    [[ ! -e $STATE || -O $STATE ]] || fail "GRAFT_CLUSTER=$STATE belongs to another user; give another folder" 2
    [ -z "$(ours)" ] || fail "a cluster of $STATE is up already; end it with cluster/local.sh down, or set GRAFT_CLUSTER"
    for port in "$PORT" "$DASHBOARD"; do
        [[ $port =~ ^[1-9][0-9]{3,4}$ && $port -ge 1024 && $port -le 65535 ]] ||
            fail "RAY_PORT, RAY_DASHBOARD_PORT: got $port; give a number from 1024 to 65535" 2
    done
    is_free "$PORT" || fail "port $PORT is in use; set RAY_PORT to a free one"
    is_free "$DASHBOARD" || fail "port $DASHBOARD is in use; set RAY_DASHBOARD_PORT to a free one"
}

# node NUMBER OPTION...: one Ray node in a session of its own. Zeros let the system choose ports, so that no two clash.
# A folder per node: in a shared one, each node that a job reaches would unpack the job's files anew, under the feet of
# those that run in them already.
node() {
    local number=$1
    shift
    GRAFT_CLUSTER_MARK=$(cat "$STATE/mark") RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 \
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 SPT_NOENV=1 \
        setsid env -u RAY_ADDRESS ray start --block --num-cpus="$CPUS" --object-store-memory="$OBJECT_STORE_BYTES" \
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 --disable-usage-stats \
        --temp-dir="$STATE/node-$number" "$@" >"$STATE/node-$number.log" 2>&1 </dev/null &
    PIDS+=($!)
    disown # no word from bash when it ends
}

# await PID...: waits until the head lists as many nodes; gives up when one of these processes has ended.
await() {
    # Ray prefers the variable to what its client is told.
    RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:$DASHBOARD python - "$SECONDS_TO_START" "$@" <<'PYTHON'
import os, sys, time
from ray.util.state import list_nodes

seconds, pids = float(sys.argv[1]), [int(pid) for pid in sys.argv[2:]]
end = time.monotonic() + seconds
while time.monotonic() < end:
    try:
        for pid in pids:
            os.kill(pid, 0)
        if sum(node.state == "ALIVE" for node in list_nodes()) >= len(pids):
            sys.exit(0)
    except ProcessLookupError:
        break
    except Exception:  # the dashboard is not there yet
        pass
    time.sleep(0.3)
sys.exit(1)
PYTHON
}

up() {
    check
    mkdir -p -m 700 "$STATE"
    rm -rf "$STATE"/node-[0-9]*
    printf '%s-%s-%s' "$STATE" "$$" "$RANDOM$RANDOM" >"$STATE/mark"
    printf '%s %s' "$PORT" "$DASHBOARD" >"$STATE/ports"
    PYTHONPATH=$REPO/platform python -c 'from graft.cluster import use_tokens; use_tokens()'
    trap down EXIT
    node 1 --head --port="$PORT" --dashboard-host=127.0.0.1 --dashboard-port="$DASHBOARD" \
        --ray-client-server-port="$(free_port)"
    for ((i = 2; i <= NODES; i++)); do
        node "$i" --address="127.0.0.1:$PORT" --num-gpus=0 # the head has those of the machine
    done
    if ! await "${PIDS[@]}"; then
        tail -n 3 "$STATE"/node-*.log >&2
        fail "the cluster did not start in $SECONDS_TO_START seconds, or a node ended; the logs are in $STATE"
    fi
    trap - EXIT
    env_lines
}

env_lines() {
    [ -n "$(ours)" ] || fail "no cluster of $STATE is up; start one with cluster/local.sh up"
    read -r PORT DASHBOARD <"$STATE/ports" || true
    echo "export RAY_ADDRESS=127.0.0.1:$PORT"
    echo "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$DASHBOARD"
    echo "export RAY_AUTH_MODE=token"
}

# Ends all that carry the mark, however they came about; those that do not heed TERM are killed.
down() {
    local left
    for ((waited = 0; ; waited++)); do
        left=$(ours)
        [ -n "$left" ] || break
        # shellcheck disable=SC2086 # one word per process
        if ((waited == 0)); then kill -TERM $left 2>/dev/null || true; fi
        # shellcheck disable=SC2086
        if ((waited >= SECONDS_TO_END * 5)); then kill -KILL $left 2>/dev/null || true; fi
        sleep 0.2
    done
    rm -f "$STATE/mark" "$STATE/ports"
}

case ${1:-} in
    up) NODES=${2:-2} CPUS=${3:-2} && up ;;
    env) env_lines ;;
    down) down ;;
    *) fail "give one of: up [NODES=2] [CPUS=2], env, down" 2 ;;
esac
