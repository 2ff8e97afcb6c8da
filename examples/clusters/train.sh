#!/usr/bin/env bash
# One node's part of a run on several: starts it, or goes on from its last checkpoint. Each launcher beside this file
# runs it once on every node, with
#   RECIPE          the recipe, on storage that all nodes see
#   RUN             the run directory, on the same storage
#   NODES           how many nodes there are
#   GPUS            how many GPUs each has
#   HEAD            host name or address of the node at which they meet
#   JOB             a name that all nodes of this start have in common
#   HEAD_PORT       a free port there (29500)
# What stands behind this file on the command line goes to `truing train`, such as --set parallel.shard=8.
# It ends with 143 where SIGTERM has ended the run, saved, and with what torchrun says otherwise.
set -euo pipefail

launch=(torchrun
  --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts 0
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:${HEAD_PORT:-29500}" --rdzv-id "$JOB"
  -m truing)

# A run can be gone on with as soon as it has a recipe of its own, before its first checkpoint too.
if [ -f "$RUN/recipe.yaml" ]; then
  "${launch[@]}" resume "$RUN" &
else
  "${launch[@]}" train "$RECIPE" --output "$RUN" "$@" &
fi
torchrun=$!

# The processes themselves are told: torchrun, told to end, ends them after 30 seconds whatever they are saving.
stopped=
stop() {
  stopped=1
  # shellcheck disable=SC2046
  kill -TERM $(cat "/proc/$torchrun/task/"*/children) 2>/dev/null || true
}
trap stop TERM

code=0
wait "$torchrun" || code=$?
while kill -0 "$torchrun" 2>/dev/null; do # a trap ends `wait` early
  code=0
  wait "$torchrun" || code=$?
done
if [ -n "$stopped" ] && [ "$code" -ne 0 ]; then
  code=143
fi
exit "$code"
