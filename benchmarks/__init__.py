"""Measurements, one file each: `make bench NAME=qat_step` prints one JSON line last and appends it to `benchmarks/results/`."""
