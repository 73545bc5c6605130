"""What GitHub's runner talks to: token host, broker, run service, results service and blob store.

Shapes follow actions/runner 2.336 (``UseV2Flow``): `BrokerHttpClient`, `RunServiceHttpClient`, `ResultsHttpClient`.
"""
