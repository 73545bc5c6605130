"""Decisions only: no clock, socket, process or I/O library is imported below this package.

Functions take ``now`` and return values; the planes around it (intake, control, host, egress, audit) do what they say.
"""
