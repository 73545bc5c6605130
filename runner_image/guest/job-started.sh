#!/bin/bash
# Run by the runner at the start of its job, before any step, in the job's own context (ACTIONS_RUNNER_HOOK_JOB_STARTED).
# Asks the guest's own process whether the job may go on; it answers once the host has put the job's egress policy in
# force.  Anything but a yes fails the job.  What is told of the job here is a claim that the host checks with GitHub.
set -u

reply=$(printf '%s\n' \
    "repository=${GITHUB_REPOSITORY-}" \
    "run_id=${GITHUB_RUN_ID-}" \
    "run_attempt=${GITHUB_RUN_ATTEMPT-}" \
    "job=${GITHUB_JOB-}" \
    "runner_name=${RUNNER_NAME-}" |
    nc -N -U /run/ironcd/guest.sock)

verdict=${reply%%$'\n'*}
text=${reply#*$'\n'}
if [ "$verdict" = ok ]; then
    printf '%s\n' "$text"
    exit 0
fi
if [ "$verdict" = no ]; then
    printf '::error title=IronCD::%s\n' "$text"
else
    printf '::error title=IronCD::%s\n' "the machine's guest process doesn't answer, so no egress policy is known to be in force"
fi
exit 1
