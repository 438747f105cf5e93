"""A real browser on the real server's page. Needs Chromium: Debian's, or one of the user's own in CHROMIUM_PATH."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from scripts.host import PACK_NAME, RUN_BUTTON, Host

FAILURES = Path(__file__).parent / "failures"  # screenshots of tests that failed
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
]
FAILED = pytest.StashKey[bool]()
PATIENCE = 180_000  # ms: a busy machine is no failure
JOBS = "/erase_anything/v1/jobs"
RENDERERS = {"canvas": False, "vue": True}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield started
        started.close()


@dataclass
class Frontend:
    """ComfyUI's page in one of its two renderers, and every error that it wrote."""

    page: Page
    host: Host
    errors: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error.stack or error}"))

    def _heard(self, message: ConsoleMessage) -> None:
        """Only what this server's pages say: the frontend's calls to its makers' services go nowhere in a test."""
        address = message.location.get("url", "")
        outside = address and urlsplit(address).netloc != urlsplit(self.host.url).netloc
        if message.type == "error" and not outside and "Content Security Policy" not in message.text:
            self.errors.append(f"{message.text.splitlines()[0]} [{urlsplit(address).path}]")

    def open(self, template: str | None = None) -> None:
        """The page as a user gets it, with one of the pack's example workflows out of the template browser."""
        query = f"/?template={template}&source={PACK_NAME}" if template else "/"
        self.page.goto(self.host.url + query)
        self.ready()
        if template:
            self.page.wait_for_function("!location.search.includes('template') && app.graph.nodes.length > 0")
            self.page.wait_for_timeout(1000)  # the frontend lays the nodes out after it has loaded them

    def reload(self) -> None:
        self.page.reload()
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_function("window.app?.vueAppReady && window.app.graph")

    def set(self, node_type: str, widget: str, value: object) -> None:
        """Give a widget of the only node of this type a value, as typing it would."""
        self.page.evaluate(
            """([type, name, value]) => {
                const node = app.graph.nodes.find((node) => node.type === type);
                const widget = node.widgets.find((widget) => widget.name === name);
                widget.value = value;
                widget.callback?.(value);
            }""",
            [node_type, widget, value],
        )

    def queue(self) -> None:
        """Press Run."""
        self.page.locator(RUN_BUTTON).first.click()


@pytest.fixture(params=list(RENDERERS))
def frontend(request: pytest.FixtureRequest, browser: Browser, host: Host) -> Iterator[Frontend]:
    """The frontend in each renderer in turn, with an empty memory and without the tour for newcomers."""
    with new_frontend(request, browser, host, RENDERERS[request.param]) as made:
        yield made


@contextmanager
def new_frontend(request: pytest.FixtureRequest, browser: Browser, host: Host, vue: bool = False) -> Iterator[Frontend]:
    """A host's frontend in one of the renderers; a screenshot stays of it where its test fails."""
    host.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue})
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    made = Frontend(context.new_page(), host)
    made.listen()
    yield made
    if request.node.stash.get(FAILED, False):
        FAILURES.mkdir(exist_ok=True)
        made.page.screenshot(path=FAILURES / f"{request.node.name}.png")
    context.close()
    for job in host.get(JOBS)["jobs"]:  # a training that a failed test leaves behind would slow all others
        if job["state"] in ("queued", "starting", "running"):
            host.request("POST", f"{JOBS}/{job['id']}/cancel", {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tells the fixture above whether its test failed."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report
