"""What all tests share: quiet libraries, one thread, no network, one Ray cluster for those that need one, and the order.

`make test` runs files side by side (pytest-xdist, `--dist loadgroup`). A file stays in one process, for the sake of its fixtures,
and the files that use the shared cluster stay in one together. Those that start Ray come first: they take longest, mostly waiting.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cluster.local import LocalCluster

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Every Ray of the tests listens on loopback alone.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
# A raylet on two busy cores takes longer to start than Ray waits by default.
os.environ["RAY_raylet_start_wait_time_s"] = "120"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name the group of each test, which xdist reads in its own hook of this name, and put those that start Ray first."""
    for item in items:
        shared = "shared_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("shared cluster" if shared else str(item.path)))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[LocalCluster]":
    """A local cluster with a dashboard, started when the first test asks for it."""
    from cluster.local import start_local_cluster
    from wfray.config.pipeline import LocalClusterConfig

    with start_local_cluster(LocalClusterConfig(num_cpus=2, object_store_gb=0.3), tmp_path_factory.mktemp("home")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def connected(shared_cluster: "LocalCluster") -> "Iterator[LocalCluster]":
    """A module's own connection to the shared cluster, as a job has one; what the module leaves on it ends with the connection."""
    import ray

    from actors.connection import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", shared_cluster.address)
        patch.setenv("WFRAY_HTTP_PORT", str(shared_cluster.http_port))
        connect()
        yield shared_cluster
        ray.shutdown()
