"""What runs in the VM as root: it takes the runner's registration, starts the runner, and speaks with the host.

Installed at ``/usr/lib/ironcd/guest``.  Only the standard library, and little of it: a job waits while this is imported.
"""
