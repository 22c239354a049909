"""Where actors go: to the nodes of their role where there are such, anywhere where there are not."""

import pytest
import ray

from actors.placement import gpus_for, resources_of, roles


def test_on_a_cluster_of_worker_groups_every_role_asks_for_its_own_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFRAY_ROLES", '{"student": 8, "data": 0}')
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 4.0})
    assert resources_of("student") == {"student": 1} and gpus_for("student") == 8
    assert resources_of("data") == {"data": 1} and gpus_for("data") == 0
    assert resources_of("teacher") == {} and gpus_for("teacher") == 4, "a role without a group shares what there is"


@pytest.mark.parametrize("value", [None, "", "{}"])
def test_elsewhere_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("WFRAY_ROLES", raising=False)
    if value is not None:
        monkeypatch.setenv("WFRAY_ROLES", value)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert roles() == {} and resources_of("student") == {} and gpus_for("student") == 0
