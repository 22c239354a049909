"""Connecting to the Ray cluster that a job was submitted to, and to no other; waiting for its actors."""

import os
import sys
from typing import Any

import ray
from ray import ObjectRef
from ray._private import ray_constants
from ray.exceptions import RayTaskError


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
    # Ray reads this when it is imported, which may be before this process started a cluster on loopback (see cluster.local).
    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, sys.platform == "linux")
    if not ray.is_initialized():
        ray.init(address=address, namespace=namespace, log_to_driver=True)


def wait(answer: ObjectRef) -> Any:
    """An actor's answer; a `ValueError` in the actor is raised as itself, without the actor's traceback."""
    try:
        return ray.get(answer)
    except RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from None
        raise
