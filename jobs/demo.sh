#!/usr/bin/env bash
# The README's demo: sweep the quickstart on a Ray started here, report, do the same with a generative model, serve the
# quickstart's best arm, ask it once, shut down.
#
#   jobs/demo.sh [STORAGE=demo] [PORT=8000]
set -euo pipefail

storage=${1:-demo}
port=${2:-8000}
text="Return a new path with the suffix changed."

graft sweep jobs/specs/quickstart.yaml --storage "$storage" | tee "$storage.log"
best=$(sed -n 's/^serve its best arm: graft serve \([^ ]*\).*/\1/p' "$storage.log")
mv "$storage.log" "$storage/sweep.log"
graft sweep jobs/specs/quickstart-nano.yaml --storage "$storage"

rm -f "$storage/keys.json"
key=$(graft keys new demo --file "$storage/keys.json" | tail -n 1)
graft serve "$best" --storage "$storage" --port "$port" --api-keys "$storage/keys.json" > "$storage/serve.log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" || true' EXIT

# It announces itself once everything answers; to a script that only knows the address, GET /readyz says the same.
until grep --quiet ^try "$storage/serve.log"; do
    kill -0 "$server" 2>/dev/null || { echo "error: the server has ended" >&2; exit 1; }
    sleep 0.2
done
cat "$storage/serve.log"
curl --silent --show-error --fail "http://127.0.0.1:$port/readyz" && echo
echo "asking: $text"
curl --silent --show-error --fail "http://127.0.0.1:$port/v1/classify" \
    --header "Authorization: Bearer $key" --header "Content-Type: application/json" \
    --data "{\"model\": \"$best\", \"input\": [\"$text\"]}"
echo
