"""The report of a run, made again from its directory; needs no Ray.

python -m jobs.report runs/quickstart
"""

import argparse

from jobs.cli import fail
from wfray.report import write_report
from wfray.runs import resolve_home


def main(argv: list[str] | None = None) -> None:
    """Write `report.html` into the run directory named on the command line and print its path."""
    parser = argparse.ArgumentParser(description="Write report.html into a run directory.")
    parser.add_argument("run", help="the run directory, for example runs/quickstart")
    try:
        print(write_report(resolve_home(parser.parse_args(argv).run)))
    except ValueError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
