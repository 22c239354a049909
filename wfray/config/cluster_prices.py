"""Prices of machines, dollars an hour, with the day and the page they were read on."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from wfray.config.base import Config

Day = Annotated[str, Field(pattern=r"^20\d\d-\d\d-\d\d$")]


class GpuPrice(Config):
    """Of one GPU with its share of cores and memory."""

    provider: Literal["nebius", "runpod"]
    gpu: str
    """SkyPilot's name."""
    on_demand: PositiveFloat
    spot: PositiveFloat | None = None
    """None: not known; an estimate then takes the price on demand."""
    read_on: Day
    source: str


class PriceTable(Config):
    """`configs/cluster/prices.yaml`."""

    gpus: list[GpuPrice]
    cpu_hour: PositiveFloat = Field(description="One virtual core without a GPU.")
    memory_gb_hour: PositiveFloat
    disk_gb_month: PositiveFloat
    """Of network disks and shared filesystems."""
    object_gb_month: PositiveFloat
    """Of object storage."""
    read_on: Day
    """The day of the four figures above."""
    source: str
