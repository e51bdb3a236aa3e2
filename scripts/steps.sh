# Steps of a longer job, each under a time limit, with a summary at the end.
# To be sourced by bash. A script that another one runs as a step adds its own
# steps to that one's summary.
#
#	step NAME LIMIT COMMAND...   run; the job goes on if it fails. A LIMIT of - is for
#	                             what may ask a person, and has limits of its own
#	begin NAME LIMIT COMMAND...  run beside the steps that follow; there is one at a time
#	join                         wait for it, and print what it wrote
#	skip NAME WHY                say that it was not run
#	finish                       print the summary, exit 1 if a step failed
# shellcheck shell=bash

steps_failed=0
steps_pid=
steps_beside=() # of what began: NAME LIMIT PID BEGAN
steps_owner=
if [[ -z ${FCVM_STEPS:-} ]]; then
	steps_owner=1
	FCVM_STEPS=$(mktemp)
	export FCVM_STEPS
fi
# What ends the job ends the step, and nothing is left behind by it.
trap 'steps_stop 130' INT
trap 'steps_stop 143' TERM HUP
trap steps_clean EXIT

steps_clean() { [[ -z $steps_owner ]] || rm -f "$FCVM_STEPS" "$FCVM_STEPS".*; }

steps_stop() {
	local pid
	trap - INT TERM HUP
	for pid in $steps_pid ${steps_beside[2]:-}; do
		kill -TERM "$pid" 2>/dev/null && wait "$pid"
	done
	exit "$1"
}

steps_record() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$FCVM_STEPS"; }

# steps_start LIMIT COMMAND... starts it, as $!.
steps_start() {
	local limit=$1
	shift
	# timeout makes a process group of its own, so Ctrl-C does not reach it
	# by itself; job control keeps bash from making it deaf to SIGINT.
	set -m
	timeout --kill-after=60s "$limit" "$@" </dev/null &
	set +m
}

# steps_ended NAME LIMIT BEGAN CODE says how a step ended.
steps_ended() {
	local result=ok note=
	case $4 in
	0) ;;
	124 | 137) result=FAILED note="not done after $2" ;;
	*) result=FAILED note="exit code $4" ;;
	esac
	steps_record "$1" "$result" $((SECONDS - $3)) "$note"
	if [[ $4 != 0 ]]; then
		printf '== %s: failed: %s\n' "$1" "$note"
		steps_failed=1
		return 1
	fi
}

step() {
	local name=$1 limit=$2 began=$SECONDS code=0
	shift 2
	printf '\n== %s\n' "$name"
	if [[ $limit == - ]]; then
		"$@" || code=$?
	else
		steps_start "$limit" "$@"
		steps_pid=$!
		wait "$steps_pid" || code=$?
		steps_pid=
	fi
	steps_ended "$name" "$limit" "$began" "$code"
}

begin() {
	local name=$1 limit=$2
	shift 2
	printf '\n== %s: it begins, beside what follows\n' "$name"
	steps_start "$limit" "$@" >"$FCVM_STEPS.beside" 2>&1
	steps_beside=("$name" "$limit" $! "$SECONDS")
}

join() {
	local code=0
	printf '\n== %s\n' "${steps_beside[0]}"
	wait "${steps_beside[2]}" || code=$?
	cat "$FCVM_STEPS.beside"
	steps_ended "${steps_beside[0]}" "${steps_beside[1]}" "${steps_beside[3]}" "$code"
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
