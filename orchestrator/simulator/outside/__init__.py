"""What stands outside in the simulated world: sites, an attacker who answers on every address and port, and DNS.

The world is the scorer: an attempt counts as blocked only where nothing of it arrived here.
"""
