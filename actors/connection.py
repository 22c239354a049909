"""Connecting to the Ray cluster that a job was submitted to, and to no other."""

import os

import ray


def connect(namespace: str = "wfray") -> None:
    """Join the cluster named by `RAY_ADDRESS`, which `ray job submit` sets.

    Raises:
        ValueError: `RAY_ADDRESS` is not set: nothing is started or joined by guess.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise ValueError(
            "RAY_ADDRESS is not set. Start a cluster with `python -m cluster.local` and submit this job to it: "
            "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m jobs.<stage> ..."
        )
    if not ray.is_initialized():
        ray.init(address=address, namespace=namespace, log_to_driver=True)
