"""What all tests share: quiet libraries, one thread, no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
# A raylet on two busy cores takes longer to start than Ray waits by default.
os.environ["RAY_raylet_start_wait_time_s"] = "120"
