"""What we use of Ray beside its documented Python API. Nothing outside this package names it.

    environment.py        RAY_* variables of every process that speaks with Ray
    serve_environment.py  RAY_* variables of a cluster that serves
    auth.py               the token that this process shows to a cluster
    serve_client.py       Serve's controller, as the dashboard speaks with it
    haproxy.py            HAProxy as Ray starts it, from Ray's own file with our bounds in it
    haproxy_failover.py   another HAProxy, until Serve has its own again

Ray may change any of this in a patch release. So each use says why it is needed and what public
API would replace it, and tests/unit/cluster/ray_private/test_contract.py fails by the module's name
where the pinned Ray no longer has it.
"""
