"""Fifty groups of 1, 2 or 4 workers killed with SIGKILL at random moments of one epoch: no row lost, doubled or out of place.

The workers consume real packed text through the real `Feed` as fast as they can (see `benchmarks.consumers`). Headline: rows lost,
consumed twice and out of order, together.
"""

import shutil
import time
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.consumers import Job, consume, faults, packed_rows
from benchmarks.harness import report
from benchmarks.inputs import quickstart_corpus

NUM_KILLS = 50
ROWS = 16
WORLD_SIZES = [1, 2, 4]


def main() -> None:
    corpus = quickstart_corpus("sequence_length=128")
    num_rows = packed_rows(corpus).total()
    directory = Path(mkdtemp(prefix="resume-data-"))
    job = Job(corpus, directory, ROWS, -(-num_rows // ROWS), seed=0)
    started = time.perf_counter()
    kills = consume(job, WORLD_SIZES, NUM_KILLS, seed=1)
    seconds = time.perf_counter() - started
    found, commit = faults(job), job.commit()
    assert commit is not None
    groups = dict(commit.notes)
    detail = {
        "kills": kills,
        "rows_lost": found.lost,
        "rows_doubled": found.doubled,
        "rows_out_of_order": found.misplaced,
        "epoch_rows": num_rows,
        "steps": job.num_steps,
        "groups_that_committed": len(groups),
        "steps_by_workers": {str(size): count for size, count in sorted(Counter(size for _, size in commit.notes).items())},
        "seconds": round(seconds, 1),
    }
    shutil.rmtree(directory)
    assert kills == NUM_KILLS, f"the epoch ended after {kills} kills"
    report("resume_data", found.total, "rows lost, doubled or out of order in 50 kills", goal=0, detail=detail)


if __name__ == "__main__":
    main()
