"""Histories that found something once, or that chance seldom finds; each is played in every run of the tests."""

from __future__ import annotations

from .deeds import Plan
from .histories import Step

ONE = {"fate": "now", "count": 1, "deploys": False}
KEPT: dict[str, tuple[Plan, list[Step]]] = {
    "machines that an emptied Redis forgot are taken back on a host that was drained meanwhile": (
        Plan(steps=3, small=True, quota=2),
        [
            ("jobs_are_queued", {"repo": 0, **ONE, "count": 3}),
            ("all_goes_on", {"rounds": 3, "fate": "now"}),
            ("redis_is_emptied", {}),
            ("github_errs", {"kind": "limited", "after": 0, "times": 1, "of": ""}),
            ("a_host_is_drained_or_taken_back", {"name": "h1", "wait": 0}),
            ("all_goes_on", {"rounds": 1, "fate": "lost"}),
            ("all_goes_on", {"rounds": 2, "fate": "lost"}),
            ("all_goes_on", {"rounds": 1, "fate": "now"}),
        ],
    ),
    "a repository is renamed, and its second job is heard of under the new name": (
        Plan(per_repository=True, steps=99, quota=1),
        [
            ("the_worker_looks", {}),
            ("jobs_are_queued", {"repo": 1, **ONE, "fate": "late"}),
            ("jobs_are_queued", {"repo": 1, **ONE}),
            ("a_repository_is_renamed", {}),
            ("all_goes_on", {"rounds": 2, "fate": "now"}),
            ("the_worker_looks", {}),
        ],
    ),
    "that a job began is heard of once the App was removed, and its end isn't": (
        Plan(steps=99, small=True),
        [
            ("another_worker_looks", {}),
            ("jobs_are_queued", {"repo": 1, **ONE, "fate": "lost", "count": 2}),
            ("jobs_are_queued", {"repo": 0, **ONE}),
            ("the_worker_looks", {}),
            ("all_goes_on", {"rounds": 3, "fate": "late"}),
            ("the_app_is_removed_or_comes_back", {"fate": "lost"}),
            ("a_running_job_ends", {"pick": 1, "fate": "now", "stops": True, "how": "failure"}),
        ],
    ),
    "a runner is registered while the App is suspended, and neither that nor its return is heard of": (
        Plan(steps=3, quota=1),
        [
            ("jobs_are_queued", {"repo": 0, **ONE, "fate": "late", "deploys": True}),
            ("all_goes_on", {"rounds": 1, "fate": "now"}),
            ("the_app_is_suspended_or_not", {"fate": "lost"}),
            ("all_goes_on", {"rounds": 3, "fate": "twice"}),
            ("a_vm_fails", {"pick": 3}),
            ("all_goes_on", {"rounds": 1, "fate": "now"}),
            ("the_app_is_suspended_or_not", {"fate": "lost"}),
        ],
    ),
    "another worker makes all runners while the first is about to": (
        Plan(per_repository=True),
        [
            ("jobs_are_queued", {"repo": 0, **ONE}),
            ("jobs_are_queued", {"repo": 1, **ONE, "count": 3}),
            ("a_worker_is_overtaken", {"at": 1}),
            ("hosts_go_on", {}),
        ],
    ),
    "a job ends just after its runner's host was drained, and its delivery is lost": (
        Plan(quota=2),
        [
            ("jobs_are_queued", {"repo": 0, **ONE, "count": 3}),
            ("all_goes_on", {"rounds": 3, "fate": "now"}),
            ("jobs_are_assigned", {"fate": "late", "drain": True, "last": True}),
            ("a_running_job_ends", {"pick": 2, "fate": "lost", "stops": False, "how": "failure"}),
            ("all_goes_on", {"rounds": 1, "fate": "now"}),
        ],
    ),
    "a host is drained just before anybody hears that its runner has a job": (
        Plan(small=True),
        [
            ("jobs_are_queued", {"repo": 0, **ONE}),
            ("the_worker_looks", {}),
            ("hosts_go_on", {}),
            ("the_worker_looks", {}),
            ("jobs_are_assigned", {"fate": "late", "drain": True, "last": False}),
        ],
    ),
    "a machine that nobody has a record of fills its host": (
        Plan(small=True),
        [
            ("jobs_are_queued", {"repo": 1, **ONE, "count": 2}),
            ("the_worker_looks", {}),
            ("jobs_are_assigned", {"fate": "twice", "drain": False, "last": True}),
            ("hosts_go_on", {}),
            ("redis_is_emptied", {}),
            ("github_forgets_an_idle_runner", {"pick": 6, "exits": True}),
            ("jobs_are_assigned", {"fate": "now", "drain": False, "last": True}),
            ("a_running_job_ends", {"pick": 6, "fate": "now", "stops": False, "how": "cancelled"}),
        ],
    ),
    "the App is suspended as a job begins, and one of two workers hasn't heard of it": (
        Plan(quota=2, rerun=True),
        [
            ("github_errs", {"kind": "refused", "after": 0, "times": 2}),
            ("all_goes_on", {"rounds": 1, "fate": "now"}),
            ("jobs_are_queued", {"repo": 0, "fate": "late", "count": 3, "deploys": False}),
            ("all_goes_on", {"rounds": 2, "fate": "twice"}),
            ("the_app_is_suspended_or_not", {"fate": "now"}),
            ("another_worker_looks", {}),
        ],
    ),
    "GitHub has forgotten a runner whose guest has a job, and its host is drained": (
        Plan(small=True),
        [
            ("jobs_are_queued", {"repo": 0, **ONE}),
            ("the_worker_looks", {}),
            ("hosts_go_on", {}),
            ("the_worker_looks", {}),
            ("jobs_are_assigned", {"fate": "late", "drain": False, "last": False}),
            ("github_errs", {"kind": "refused", "after": 0, "times": 4, "of": "_job"}),
            ("github_forgets_a_busy_runner", {"pick": 0}),
            ("a_host_is_drained_or_taken_back", {"name": "h1", "wait": 300}),
            ("the_worker_looks", {}),
        ],
    ),
    "a registration is made when nobody waits for it any more, and its job is cancelled": (
        Plan(),
        [
            ("jobs_are_queued", {"repo": 0, **ONE}),
            ("github_errs", {"kind": "later", "after": 0, "times": 1, "of": ""}),
            ("the_worker_looks", {}),
            ("a_queued_job_ends_elsewhere", {"pick": 0, "fate": "now", "stolen": False}),
            ("the_worker_looks", {}),
            ("time_passes", {"seconds": 5, "hosts": True, "worker": True}),
        ],
    ),
    "a worker dies as a runner was registered, and its job is cancelled": (
        Plan(),
        [
            ("jobs_are_queued", {"repo": 0, **ONE}),
            ("hosts_go_on", {}),
            ("the_worker_dies_at_work", {"at": 16, "lease_stays": False}),
            ("a_queued_job_ends_elsewhere", {"pick": 0, "fate": "now", "stolen": False}),
            ("the_worker_looks", {}),
        ],
    ),
    "each of two repositories' jobs is given to the runner that was made for the other's": (
        Plan(),
        [
            ("jobs_are_queued", {"repo": 0, **ONE}),
            ("jobs_are_queued", {"repo": 1, **ONE}),
            ("the_worker_looks", {}),
            ("hosts_go_on", {}),
            ("the_worker_looks", {}),
            ("jobs_are_assigned", {"fate": "now", "drain": False, "last": True}),
            ("all_goes_on", {"rounds": 2, "fate": "now"}),
        ],
    ),
    "a job loses its machine, is run again, and loses that one too": (
        Plan(small=True, rerun=True),
        [
            ("jobs_are_queued", {"repo": 0, **ONE}),
            ("all_goes_on", {"rounds": 3, "fate": "now"}),
            ("a_machine_dies_under_its_job", {"pick": 0}),
            ("late_deliveries_arrive", {"last_first": False}),
            ("all_goes_on", {"rounds": 3, "fate": "now"}),
            ("a_machine_dies_under_its_job", {"pick": 0}),
            ("time_passes", {"seconds": 100, "hosts": True, "worker": True}),
        ],
    ),
    "Redis is emptied while a job runs": (
        Plan(),
        [
            ("jobs_are_queued", {"repo": 0, **ONE}),
            ("all_goes_on", {"rounds": 3, "fate": "now"}),
            ("redis_is_emptied", {}),
            ("all_goes_on", {"rounds": 2, "fate": "now"}),
        ],
    ),
}
