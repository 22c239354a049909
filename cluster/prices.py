"""What machines cost: SkyPilot's own catalogue where it is on this machine, else the price table with its dates."""

import csv
from dataclasses import dataclass
from pathlib import Path

from wfray.config.cluster import Accelerated, ClusterConfig, Head, num_gpus
from wfray.config.cluster_prices import PriceTable

TABLE = Path(__file__).resolve().parent.parent / "configs" / "cluster" / "prices.yaml"
CATALOGUE = Path.home() / ".sky" / "catalogs" / "v8"
HEAD_MEMORY_GB_PER_CORE = 4


@dataclass(frozen=True)
class Price:
    """Of one machine."""

    dollars_per_hour: float
    source: str
    """Where the figure is from, and of which day."""


def price_table() -> PriceTable:
    """The project's own."""
    return PriceTable.load(TABLE)


def node_price(config: ClusterConfig, machine: Head | Accelerated) -> Price:
    """Of one machine; of alternatives the dearest, since it is not known which one there will be.

    Raises:
        ValueError: an accelerator is in neither catalogue nor table.
    """
    accelerators = machine.accelerators if isinstance(machine, Accelerated) else []
    if not accelerators:
        table = price_table()
        memory = machine.memory_gb or HEAD_MEMORY_GB_PER_CORE * machine.cpus
        return Price(machine.cpus * table.cpu_hour + memory * table.memory_gb_hour, f"table of {table.read_on}")
    assert isinstance(machine, Accelerated)
    return max((gpu_price(config.provider.kind, name, machine.spot) for name in accelerators), key=lambda price: price.dollars_per_hour)


def gpu_price(provider: str, accelerator: str, spot: bool) -> Price:
    """Of a machine with these GPUs."""
    found = catalogue_price(provider, accelerator, spot)
    if found is not None:
        return Price(found, "SkyPilot's catalogue")
    gpu, count = accelerator.partition(":")[0], num_gpus(accelerator)
    table = price_table()
    for row in table.gpus:
        if (row.provider, row.gpu) == (provider, gpu):
            each = row.spot if spot and row.spot else row.on_demand
            return Price(each * count, f"table of {row.read_on}" + ("" if row.spot or not spot else ", on demand"))
    known = ", ".join(sorted(row.gpu for row in table.gpus if row.provider == provider))
    raise ValueError(f"no price is known for {gpu} on {provider} (known: {known}): is the name SkyPilot's? Add it to {TABLE}")


def catalogue_price(provider: str, accelerator: str, spot: bool) -> float | None:
    """The lowest price of any region, dollars an hour, or None."""
    path = CATALOGUE / provider / "vms.csv"
    if not path.exists():
        return None
    gpu, column = accelerator.partition(":")[0], "SpotPrice" if spot else "Price"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["AcceleratorName"] == gpu and float(row["AcceleratorCount"] or 0) == num_gpus(accelerator)
        ]
    prices = [float(row[column]) for row in rows if row[column]]
    return min(prices, default=None)
