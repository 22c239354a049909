"""As many replicas as the load calls for, for the applications on Ray Serve."""

from typing import Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config


class Autoscaling(Config):
    """As many replicas as the requests on their way call for. A student keeps workers x in_flight on its way, steadily."""

    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt
    requests_per_replica: PositiveFloat = 4.0
    """Requests on their way, running or queued, that one replica is meant to have."""
    upscale_delay_seconds: NonNegativeFloat = 30.0
    """How long there must be more before a replica is added."""
    downscale_delay_seconds: NonNegativeFloat = 600.0

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self
