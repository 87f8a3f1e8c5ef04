"""The page in a real browser, on the demo's bundle: mark, enroll, find, delete, by keys too."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import ROOT, served
from uino_deploy.runtime import Support

DEMO = ROOT / "build" / "demo"
BROWSERS = ("/usr/lib/chromium/chromium", "chromium", "chromium-browser", "google-chrome")
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium, Playwright's own or the machine's."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    with playwright.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        if not own.exists() and not found:
            pytest.skip("no Chromium is installed")
        chosen = {} if own.exists() else {"executable_path": found[0]}
        # Chromium's sandbox needs a user other than root.
        alone = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
        running = started.chromium.launch(args=[*alone, "--disable-gpu"], **chosen)
        yield running
        running.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    if not (DEMO / "demo.uino").is_dir():
        pytest.skip("no demo bundle: make demo")
    classes = tmp_path_factory.mktemp("page") / "classes"
    with served(DEMO / "demo.uino", classes, "--threads", "1") as service:
        service.classes = classes
        yield service.wait_until_ready()


@pytest.fixture(params=[PHONE, DESK], ids=["phone", "desk"])
def page(request, browser, running):
    """Return the opened page; at the end it must have said nothing to the console."""
    for path in running.classes.iterdir():
        path.unlink()
    opened = browser.new_page(viewport=request.param)
    opened.set_default_timeout(60_000)
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda sent: asked.append(sent.url))
    opened.said = said
    opened.goto(running.url)
    yield opened
    opened.close()
    assert not said
    assert all(url.startswith((running.url, "blob:", "data:")) for url in asked), asked


def query_of_a_class():
    """Return a query of the demo whose class is found well, its shot, and its mask."""
    for query in sorted((DEMO / "queries").iterdir()):
        name = query.stem.partition("_")[2]
        truth = np.asarray(Image.open(DEMO / "truths" / query.name)) != 0
        found = DEMO / "masks" / query.name
        if found.exists():
            mask = np.asarray(Image.open(found)) != 0
            if (mask & truth).sum() > 0.85 * (mask | truth).sum():
                return query, DEMO / f"shots/{name}.png", DEMO / f"shots/{name}_mask.png"
    raise AssertionError("the demo finds nothing well")


def changed(page, index):
    """Return how many pixels of a found picture are not what they were at the first call."""
    return page.evaluate(
        """(index) => {
            const canvas = document.querySelectorAll("#found canvas")[index];
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            window.before ??= data;
            return data.reduce((sum, value, at) => sum + (value !== window.before[at]), 0);
        }""",
        index,
    )


def paint(page, mask):
    """Paint a mask with the mouse: a stroke along each run of its rows."""
    canvas = page.locator("#mark")
    canvas.scroll_into_view_if_needed()
    page.locator("#width").fill("1")
    box = canvas.bounding_box()
    height, width = mask.shape
    scale = min(box["width"] / width, box["height"] / height)
    left = box["x"] + (box["width"] - scale * width) / 2
    top = box["y"] + (box["height"] - scale * height) / 2
    for row in range(0, height, 2):
        edges = np.flatnonzero(np.diff(np.r_[0, mask[row], 0].astype(int)))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            page.mouse.move(left + scale * (first + 0.7), top + scale * (row + 0.7))
            page.mouse.down()
            page.mouse.move(left + scale * (last - 0.7), top + scale * (row + 0.7))
            page.mouse.up()


def test_an_object_is_marked_enrolled_found_and_forgotten(page, running):
    query, shot, mask = query_of_a_class()
    page.locator("#files").set_input_files([shot, query])
    page.locator("#found figure").nth(1).wait_for()
    assert changed(page, 1) == 0
    paint(page, np.asarray(Image.open(mask)) != 0)
    page.get_by_role("textbox", name="Name").fill("a letter")
    page.get_by_role("button", name="Enroll").click()
    page.get_by_text("Looked at 2 pictures.").wait_for()
    assert Support.load(running.classes / "a letter.safetensors").shots == 1
    caption = page.locator("#found figcaption").nth(1)
    assert "a letter: found" in caption.inner_text()
    whole = changed(page, 1)
    assert whole > 100
    page.locator("#opacity").fill("0")
    assert changed(page, 1) == 0
    page.locator("#opacity").fill("0.6")
    with page.expect_response("**/v1/segment*threshold=5*"):
        page.locator("#threshold").fill("5")
        page.locator("#threshold").dispatch_event("change")
    page.get_by_text("Looked at 2 pictures.").wait_for()
    assert changed(page, 1) < whole
    page.locator("#presence").fill("1")
    assert "not there" in caption.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.get_by_role("button", name="Delete a letter").click()
    page.get_by_text("Enroll a class, or choose one.").wait_for()
    assert not list(running.classes.glob("*.safetensors"))
    assert "a letter" not in caption.inner_text()


def test_keys_alone_mark_and_enroll(page, running):
    _, shot, _ = query_of_a_class()
    page.locator("#files").set_input_files([shot])
    page.locator("#found figure").wait_for()
    page.get_by_role("button", name="Polygon").focus()
    page.keyboard.press("Enter")
    page.locator("#mark").focus()
    for keys in (["ArrowLeft"] * 3, ["ArrowDown"] * 4, ["ArrowRight"] * 6, ["ArrowUp"] * 5):
        for key in keys:
            page.keyboard.press(f"Shift+{key}")
        page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.keyboard.press("Backspace")  # takes the polygon back
    page.get_by_role("button", name="Brush").press("Enter")
    page.locator("#mark").focus()
    page.keyboard.press("Space")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Space")
    page.get_by_role("textbox", name="Name").press_sequentially("by keys")
    page.keyboard.press("Enter")
    page.get_by_text("Looked at 1 picture.").wait_for()
    assert (running.classes / "by keys.safetensors").exists()


def test_errors_are_shown_and_go_away(page):
    _, shot, _ = query_of_a_class()
    alert = page.get_by_role("alert")
    page.locator("#files").set_input_files([shot])
    page.locator("#found figure").wait_for()
    page.get_by_role("textbox", name="Name").fill("nothing")
    page.get_by_role("button", name="Enroll").click()
    alert.get_by_text("the mask is empty").wait_for()
    page.said.clear()  # the browser's own note of the status 400
    text = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"x"}
    page.locator("#files").set_input_files([text])
    alert.get_by_text("This browser cannot show a.txt").wait_for()
    page.locator("#files").set_input_files([shot])
    page.locator("#found figure").nth(1).wait_for()
    assert not alert.is_visible()


def test_the_page_asks_for_a_token_where_one_is_needed(browser, tmp_path):
    token = "0123456789abcdef0123"
    (tmp_path / "token").write_text(token)
    options = ("--threads", "1", "--token-file", str(tmp_path / "token"))
    with served(DEMO / "demo.uino", tmp_path / "classes", *options) as service:
        service.wait_until_ready()
        opened = browser.new_page()
        opened.goto(service.url)
        opened.get_by_role("alert").get_by_text("the token is missing").wait_for()
        opened.get_by_label("Token of the service").fill(token)
        opened.keyboard.press("Enter")
        opened.get_by_role("alert").wait_for(state="hidden")
        opened.close()
