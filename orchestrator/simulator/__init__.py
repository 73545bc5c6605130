"""A GitHub, a runner and an internet to try the system against, on one machine and with nothing of the real ones.

It ships with the product: the demo and the tests run against it, and an admin can, before installing the App.
"""
