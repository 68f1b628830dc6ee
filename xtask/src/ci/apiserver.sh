#!/bin/sh
# apiserver.sh SCRIPT stop|start: what the cluster's own script does, and what a node does besides: the controller manager
# and the scheduler end where they cannot renew their Lease, and are started again. Inside of the cluster's network namespace.
set -eu
script=$1 what=$2
cd "${D:-/tmp/k8s-node}"
is_up() { kill -0 "$(cat "$1.pid")" 2>/dev/null; }
for name in kcm sched; do
    if [ "$what" = stop ] && is_up $name; then
        cp "/proc/$(cat $name.pid)/cmdline" $name.arguments
    fi
done
"$script" "$what"
for name in kcm sched; do
    if [ "$what" = start ] && ! is_up $name; then
        # shellcheck disable=SC2016
        setsid xargs -0 sh -c 'echo $$ >"$0.pid"; exec "$@" >>"$0.log" 2>&1 </dev/null' $name <$name.arguments >/dev/null 2>&1 &
    fi
done
