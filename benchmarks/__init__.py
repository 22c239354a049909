"""Measurements, one file each: `make bench NAME=qat_step` prints one JSON line last and appends it to `benchmarks/results/`."""

import os

# Set before Ray is imported: a benchmark's own cluster listens on loopback and asks nobody for a token.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
