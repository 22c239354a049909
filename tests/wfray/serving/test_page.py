"""The chat page in headless Chromium, driven over WebDriver: a question is typed, sent, and two models answer side by side."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.wfray.serving.served import Replica, hosting, listening
from wfray.runs.children import free_port
from wfray.serving.api import Access
from wfray.serving.guard import key_hash

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="needs Chromium: apt-get install chromium chromium-driver"),
]
KEY = "secret"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1200,700"]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER = "\ue007"


@pytest.fixture(scope="module")
def page(model_file: Path) -> Iterator[str]:
    """The application with two models and a key."""
    replica = Replica(hosting(model_file, names=("ternary", "original"), model={"context": 1024}))
    with listening(replica, Access([key_hash(KEY)])) as url:
        yield url
    replica.close()


def wait_until(what: Any, seconds: float = 120.0) -> Any:
    """Wait until something holds; what it is then."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.05)
    return found


class Browser:
    """One session of WebDriver."""

    def __init__(self, driver: str) -> None:
        options = {"binary": BROWSER, "args": ARGUMENTS}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        created = requests.post(f"{driver}/session", json={"capabilities": capabilities}, timeout=120).json()["value"]
        self.base = f"{driver}/session/{created['sessionId']}"

    def do(self, path: str, **body: Any) -> Any:
        """A command; raises with the browser's message."""
        answer = requests.post(f"{self.base}/{path}", json=body, timeout=120).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self.do("execute/sync", script=f"return {script}", args=[])

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        element = self.do("element", using="css selector", value=selector)[ELEMENT]
        self.do(f"element/{element}/value", text=text)

    def click(self, selector: str) -> None:
        """Click an element."""
        element = self.do("element", using="css selector", value=selector)[ELEMENT]
        self.do(f"element/{element}/click")

    def texts(self, selector: str) -> list[str]:
        """The texts of elements."""
        return self.run(f"[...document.querySelectorAll({selector!r})].map(found => found.textContent)")

    def picture(self) -> bytes:
        """A screenshot, base64."""
        return requests.get(f"{self.base}/screenshot", timeout=120).json()["value"].encode()


@contextmanager
def browsing(page: str) -> Iterator[Browser]:
    """A browser on a page."""
    port = free_port()
    process = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        browser = Browser(f"http://127.0.0.1:{port}")
        browser.do("url", url=page)
        yield browser
        requests.delete(browser.base, timeout=60)
    finally:
        process.terminate()
        process.wait()


def test_a_question_is_answered_by_two_models_side_by_side(page: str, tmp_path: Path) -> None:
    with browsing(page) as browser:
        assert wait_until(lambda: browser.texts(".error")) == [
            "Incorrect API key provided: send one of this server's keys as `Authorization: Bearer <key>`"
        ]
        browser.type("#key", KEY + ENTER)
        wait_until(lambda: len(browser.texts(".column")) == 2)
        browser.run("(document.getElementById('temperature').value = 0)")
        browser.type("#prompt", "How many days are in a week?" + ENTER)
        seen = [wait_until(lambda: [text for text in browser.texts(".assistant.writing") if text])]
        wait_until(lambda: browser.texts("#send") == ["Send"])
        answers = browser.texts(".assistant")
        assert len(answers) == 2 and all("7 days" in answer for answer in answers) and answers[0] == answers[1]
        assert seen and all("tokens/s" in text for text in browser.texts(".speed"))
        browser.type("#prompt", "And in two weeks?" + ENTER)
        wait_until(lambda: len(browser.texts(".user")) == 4 and browser.texts("#send") == ["Send"])
        assert len(browser.texts(".assistant")) == 4
        (tmp_path / "page.png.base64").write_bytes(browser.picture())


def test_an_answer_can_be_stopped_and_one_model_chosen(page: str) -> None:
    with browsing(page) as browser:
        browser.type("#key", KEY + ENTER)
        wait_until(lambda: len(browser.texts(".column")) == 2)
        browser.run("(document.getElementById('second').value = '', document.getElementById('second').dispatchEvent(new Event('change')))")
        assert len(browser.texts(".column")) == 1
        browser.run("(document.getElementById('tokens').value = 900)")
        browser.type("#prompt", "Count from one to one thousand." + ENTER)
        wait_until(lambda: any(browser.texts(".assistant.writing")))
        browser.click("#send")
        wait_until(lambda: browser.texts("#send") == ["Send"])
        assert len(browser.texts(".assistant")) == 1 and not browser.texts(".error")
        browser.run("(document.getElementById('tokens').value = 5)")
        browser.type("#prompt", "Hello" + ENTER)
        wait_until(lambda: len(browser.texts(".assistant")) == 2 and browser.texts("#send") == ["Send"])
