"""The command line that every job has: `--config FILE [--dry-run] [key=value ...]`."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from wfray.config.base import Config

C = TypeVar("C", bound=Config)


def run_job(config_type: type[C], main: Callable[..., None], argv: list[str] | None = None, flags: dict[str, str] | None = None) -> None:
    """Parse the command line, load the configuration and call `main` with it, and with `flags` (name -> help) as booleans.

    A user's mistake (`ValueError`) or an error of the file system (disk full, read-only directory) ends the process with exit
    code 2 and one message on standard error, Ctrl-C with code 130; anything else propagates with its traceback.
    """
    parser = argparse.ArgumentParser(description=(config_type.__doc__ or "").strip())
    parser.add_argument("--config", required=True, help="YAML file of this stage, see configs/")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the file, for example train.tokens=20000")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = config_type.load(arguments.config, arguments.overrides)
        if arguments.dry_run:
            print(config.to_yaml(), end="")
            return
        main(config, **{name: getattr(arguments, name) for name in flags or {}})
        leave(0)
    except ValueError as error:
        fail(str(error))
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        fail(f"{error}; check free space and permissions of the run directory")
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from here", code=130)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one message on standard error and exit with `code`."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exit at once: taking down an interpreter that holds torch and Ray takes seconds, and nothing is left to be done."""
    sys.stdout.flush()
    os._exit(code)
