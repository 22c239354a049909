"""A hub source through the Hub's own client, against a server on loopback that answers as the Hub's documented API does."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
READ = """
import sys
from pathlib import Path
from wfray.config.data import HubFiles
from wfray.data.cleaning import Cleaner
from wfray.data.sources import plan_units, read_unit
source = HubFiles(kind="hub", name="s", dataset="owner/texts", revision="v1", glob="data/*.parquet", licence="own", weight=1)
for unit in plan_units(source, Path("/"), 0, 4000):
    for document in read_unit(unit, Path("/"), "raise", Cleaner(source, None)):
        print(document.file, document.index, document.text)
"""


class Hub(BaseHTTPRequestHandler):
    """One public data set, `owner/texts`, whose revision `v1` is a commit; its files lie in `root`."""

    root: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if re.fullmatch(r"/api/datasets/owner/texts(/revision/[^/]+)?", path):
            facts = {"id": "owner/texts", "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": [], "siblings": []}
            self.answer(json.dumps(facts).encode())
        elif found := re.fullmatch(r"/api/datasets/owner/texts/tree/[^/]+/?(.*)", path):
            self.answer(json.dumps(self.entries(found[1])).encode())
        elif found := re.fullmatch(r"/datasets/owner/texts/resolve/[^/]+/(.+)", path):
            self.answer_range((self.root / found[1]).read_bytes())
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = json.loads(form)["paths"] if form.startswith("{") else re.findall(r"paths=([^&]+)", unquote(form))
        asked = asked if isinstance(asked, list) else [asked]
        self.answer(json.dumps([self.entry(self.root / name) for name in asked if (self.root / name).exists()]).encode())

    def entries(self, folder: str) -> list[dict[str, object]]:
        recursive = "recursive=true" in self.path.lower()
        return [self.entry(path) for path in sorted((self.root / folder).glob("**/*" if recursive else "*"))]

    def entry(self, path: Path) -> dict[str, object]:
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        return {"type": kind, "path": path.relative_to(self.root).as_posix(), "size": size, "oid": COMMIT}

    def answer_range(self, content: bytes) -> None:
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, stop = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            self.answer(content[start : stop + 1], 206, {"Content-Range": f"bytes {start}-{stop}/{len(content)}"})
        else:
            self.answer(content)

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "ETag": COMMIT, "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Silent."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub whose files lie in `tmp_path`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("LocalHub", (Hub,), {"root": tmp_path}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_data_set_is_read_by_ranges_through_the_hubs_client(hub: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("not text to train on", encoding="utf-8")
    expected = []
    for name in ("a", "b"):
        rows = [{"text": f"{name} {number} é" + "." * 90, "other": number} for number in range(100)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{name}.parquet", row_group_size=20, compression="none")
        expected += [f"data/{name}.parquet {number} {row['text']}" for number, row in enumerate(rows)]
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    result = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    assert sorted(result.stdout.splitlines()) == sorted(expected)
