# Steps of a longer job, each under a time limit, with a summary at the end.
# To be sourced by bash. A script that another one runs as a step adds its own
# steps to that one's summary.
#
#	step NAME LIMIT COMMAND...   run; the job goes on if it fails. A LIMIT of - is for
#	                             what may ask a person, and has limits of its own
#	skip NAME WHY                say that it was not run
#	finish                       print the summary, exit 1 if a step failed
# shellcheck shell=bash

steps_failed=0
steps_pid=
steps_owner=
if [[ -z ${FCVM_STEPS:-} ]]; then
	steps_owner=1
	FCVM_STEPS=$(mktemp)
	export FCVM_STEPS
fi
# What ends the job ends the step, and nothing is left behind by it.
trap 'steps_stop 130' INT
trap 'steps_stop 143' TERM HUP
trap '[[ -z $steps_owner ]] || rm -f "$FCVM_STEPS"' EXIT

steps_stop() {
	trap - INT TERM HUP
	if [[ -n $steps_pid ]]; then
		kill -TERM "$steps_pid" 2>/dev/null && wait "$steps_pid"
	fi
	exit "$1"
}

steps_record() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$FCVM_STEPS"; }

step() {
	local name=$1 limit=$2 began=$SECONDS code=0 result=ok note=
	shift 2
	printf '\n== %s\n' "$name"
	if [[ $limit == - ]]; then
		"$@" || code=$?
	else
		# timeout makes a process group of its own, so Ctrl-C does not reach it
		# by itself; job control keeps bash from making it deaf to SIGINT.
		set -m
		timeout --kill-after=60s "$limit" "$@" </dev/null &
		steps_pid=$!
		set +m
		wait "$steps_pid" || code=$?
		steps_pid=
	fi
	case $code in
	0) ;;
	124 | 137) result=FAILED note="not done after $limit" ;;
	*) result=FAILED note="exit code $code" ;;
	esac
	steps_record "$name" "$result" $((SECONDS - began)) "$note"
	if [[ $code != 0 ]]; then
		printf '== %s: failed: %s\n' "$name" "$note"
		steps_failed=1
		return 1
	fi
}

skip() {
	printf '\n== %s: skipped: %s\n' "$1" "$2"
	steps_record "$1" skipped - "$2"
}

finish() {
	local name result seconds note
	if [[ -n $steps_owner ]]; then
		printf '\n'
		while IFS=$'\t' read -r name result seconds note; do
			[[ $seconds == - ]] || seconds=$(printf '%d:%02d' $((seconds / 60)) $((seconds % 60)))
			printf '%-8s %6s  %s\n' "$result" "$seconds" "$name${note:+: $note}"
		done <"$FCVM_STEPS"
		printf '         %3d:%02d  in all\n' $((SECONDS / 60)) $((SECONDS % 60))
	fi
	exit "$steps_failed"
}
