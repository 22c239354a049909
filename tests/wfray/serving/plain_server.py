"""An OpenAI-compatible server as a program: this project's own API on a plain HTTP server, with one model under the name `model`.

python -m tests.wfray.serving.plain_server FILE --port N
"""

import asyncio
import sys
from pathlib import Path

import uvicorn

from tests.wfray.serving.served import hosting
from wfray.serving.api import Access, build_app
from wfray.serving.host import Host


async def main(file: Path, port: int) -> None:
    """Serve until SIGTERM."""
    host = Host()
    await host.apply(hosting(file, names=("model",)))
    await uvicorn.Server(uvicorn.Config(build_app(host.gates, host.figures, Access()), port=port, log_level="warning")).serve()
    await host.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[3])))
