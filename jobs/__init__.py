"""Entry points: one module a stage, each a flow chart. `python -m jobs.<stage> --config FILE [key=value ...]`."""
