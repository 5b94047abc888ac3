"""The chat window in a real Chromium, as a page and in JupyterLab, with the parts as they ship, and notebook 02's slider.
`make browser` runs this file.

It needs what the ordinary tests do without: playwright, Chromium (`apt install chromium`), and for one test axe-core from npm.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from e2e_lib.data.minichat.scenes import Scene, draw_scene
from e2e_lib.window.saved import read_chat

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("E2E_AXE", ROOT / ".venv/axe/node_modules/axe-core/axe.min.js"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KITE = ("My daughter wants a kite for her birthday.", "Yellow would be great.", "Mostly at the beach.", "Can you show me?")
PASTE = """async (kind) => {
    const canvas = document.createElement("canvas"); canvas.width = canvas.height = 40
    const file = new File([await new Promise(done => canvas.toBlob(done))], kind + ".png", {type: "image/png"})
    const transfer = new DataTransfer(); transfer.items.add(file)
    let place = document.activeElement
    while (place.shadowRoot?.activeElement) place = place.shadowRoot.activeElement
    const options = {bubbles: true, composed: true, cancelable: true}
    if (kind == "pasted") place.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, ...options}))
    else return transfer
}"""

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens addresses, each as a person of their own; in the end nothing may have been asked of another machine, or broken."""
    contexts, asked, broken = [], [], []

    def visit(address):
        contexts.append(chromium.new_context(viewport={"width": 1000, "height": 1000}))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("dialog", lambda dialog: (broken.append("a dialog opened"), dialog.dismiss()))
        page.goto(address)
        return page
    yield visit
    for context in contexts:
        context.close()
    assert not broken
    assert not [url for url in asked if not url.startswith(("http://127.0.0.1", "file:", "data:", "blob:"))]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(address, process):
    for _ in range(600):
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
    raise AssertionError(f"nobody answers at {address}")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page that `e2e chat --web` serves in an empty folder, until Ctrl-C ends it cleanly."""
    port, folder = free_port(), tmp_path_factory.mktemp("served")
    server = subprocess.Popen([sys.executable, "-m", "e2e_lib", "chat", "--web", "--port", str(port)], cwd=folder,
                              env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/", server)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.send_signal(signal.SIGINT)
        out, error = server.communicate(timeout=60)
    assert server.returncode == 0 and f"http://127.0.0.1:{port}" in out and "The page is closed." in out
    assert "Traceback" not in error and list(folder.iterdir()) == []


def box(page):
    return page.get_by_label("Your message")


def articles(page, count):
    """The messages, once there are so many."""
    messages = page.locator("article")
    playwright.expect(messages).to_have_count(count, timeout=60_000)
    return messages


def say(page, text, count):
    """Types a message; returns the answer, which is the ``count``-th message."""
    box(page).fill(text)
    box(page).press("Enter")
    answer = articles(page, count).nth(count - 1)
    playwright.expect(page.get_by_role("status")).to_contain_text("Answered in", timeout=60_000)
    playwright.expect(box(page)).to_have_value("")
    return answer


def size_drawn(image):
    return image.evaluate("image => [image.complete, image.naturalWidth, image.naturalHeight]")


@pytest.fixture
def photo(tmp_path):
    draw_scene(Scene("boat", "blue", "beach", 2), seed=3).save(tmp_path / "boats.png")
    return tmp_path / "boats.png"


def check_a_chat(page, photo):
    """Types, gets a drawn photo back with its caption, uploads a photo and gets an answer to it."""
    for i, line in enumerate(KITE):
        answer = say(page, line, 2 * i + 2)
    assert size_drawn(answer.locator("img")) == [True, 64, 64]
    assert "kite" in answer.locator("figcaption").inner_text() and "kite" in answer.locator("img").get_attribute("alt")
    page.locator("input[type=file]").set_input_files(photo)
    playwright.expect(page.get_by_text("With your next message")).to_be_visible(timeout=30_000)
    page.get_by_role("button", name="Send").click()
    messages = articles(page, 10)
    assert size_drawn(messages.nth(8).locator("img")) == [True, 64, 64] and messages.nth(9).inner_text()
    playwright.expect(page.get_by_text("With your next message")).to_have_count(0)


def test_the_page_is_typed_in_uploaded_to_and_reloaded(open_page, address, photo):
    page = open_page(address)
    begun = time.monotonic()
    say(page, "Hi!", 2)
    print(f"first reply after {time.monotonic() - begun:.2f} s, as the browser sees it")
    page.get_by_role("button", name="Start over").click()
    articles(page, 0)
    check_a_chat(page, photo)
    page.reload()
    articles(page, 0)
    assert say(page, "Hello again!", 2).inner_text()


def test_what_is_typed_stays_text(open_page, address):
    page = open_page(address)
    text = '<img src=x onerror="alert(1)"> **bold** <b>tag</b> $x$'
    say(page, text, 2)
    mine = page.locator("article").first
    assert mine.inner_text().strip() == text and mine.locator("img, b, strong").count() == 0


def test_photos_are_pasted_dropped_and_chosen_from_samples(open_page, address):
    page = open_page(address)
    box(page).click()
    page.evaluate(PASTE, "pasted")
    waiting = page.locator("img[alt='a photo that you shared']")
    playwright.expect(waiting).to_have_count(1, timeout=30_000)
    dropped = page.evaluate_handle(PASTE, "dropped")
    place = page.locator(".filepond--drop-label")
    middle = place.evaluate("e => (r => ({clientX: r.x + r.width / 2, clientY: r.y + r.height / 2}))(e.getBoundingClientRect())")
    for event in ("dragenter", "dragover", "drop"):
        place.dispatch_event(event, {"dataTransfer": dropped, **middle})
    playwright.expect(waiting).to_have_count(2, timeout=30_000)
    page.get_by_role("button", name="2 blue boats").click()
    playwright.expect(waiting).to_have_count(3)
    box(page).fill("Look!")
    page.get_by_role("button", name="Send").click()
    assert articles(page, 2).first.locator("img").count() == 3 and "Look!" in page.locator("article").first.inner_text()


def test_what_is_no_photo_or_too_large_is_refused_with_a_sentence(open_page, address, tmp_path):
    page = open_page(address)
    (tmp_path / "broken.png").write_bytes(b"no photo")
    page.locator("input[type=file]").set_input_files(tmp_path / "broken.png")
    playwright.expect(page.get_by_role("status")).to_contain_text("Not taken: “broken.png”", timeout=30_000)
    (tmp_path / "large.png").write_bytes(bytes(10_000_001))
    page.locator("input[type=file]").set_input_files(tmp_path / "large.png")
    playwright.expect(page.get_by_text("File is too large", exact=True)).to_be_visible(timeout=30_000)
    Image.new("1", (60_000, 1_000)).save(tmp_path / "wide.png")
    page.locator("input[type=file]").set_input_files(tmp_path / "wide.png")
    playwright.expect(page.get_by_role("status")).to_contain_text("pixels", timeout=30_000)
    assert say(page, "hello", 2).inner_text()


def test_two_people_do_not_share_a_chat(open_page, address):
    one, other = open_page(address), open_page(address)
    say(one, "I am the first.", 2)
    articles(other, 0)
    say(other, "I am the second.", 2)
    assert [page.locator("article").first.inner_text().strip() for page in (one, other)] == ["I am the first.", "I am the second."]


def test_another_system_answers_from_the_next_message_on(open_page, address):
    page = open_page(address)
    say(page, "Hi!", 2)
    page.get_by_label("Who answers").select_option("pipeline, as it ships")
    page.get_by_label("Temperature").select_option("0.7")
    page.get_by_label("Seed").fill("12")
    box(page).fill("How are you?")
    page.get_by_role("button", name="Send").click()
    playwright.expect(page.get_by_role("status")).to_contain_text("by pipeline, as it ships", timeout=60_000)


def test_a_chat_is_saved(open_page, address, tmp_path, chromium):
    page = open_page(address)
    for i, line in enumerate(KITE):
        say(page, line, 2 * i + 2)
    for kind in ("JSON", "HTML"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save as {kind}").click()
        download.value.save_as(tmp_path / f"chat.{kind.lower()}")
    turns, photos = read_chat(tmp_path / "chat.json")
    assert [turn.text for turn in turns][::2] == list(KITE) and photos["photo 1"].size == (64, 64)
    saved = open_page((tmp_path / "chat.html").as_uri())
    assert saved.locator("section").count() == 8 and size_drawn(saved.locator("img")) == [True, 64, 64]


@pytest.mark.skipif(not AXE.is_file(), reason=f"axe-core is not there: {AXE}")
@pytest.mark.parametrize("state", ["empty", "chat"])
def test_axe_finds_no_violation(open_page, address, photo, state):
    page = open_page(address)
    playwright.expect(box(page)).to_be_visible()
    if state == "chat":
        check_a_chat(page, photo)
        page.locator("input[type=file]").set_input_files(photo)
        playwright.expect(page.get_by_text("With your next message")).to_be_visible(timeout=30_000)
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run()")["violations"]
    violations = {f"{row['id']} ({row['impact']})": [node["html"] for node in row["nodes"]] for row in found}
    assert not violations, json.dumps(violations, indent=1)


# JupyterLab

CELLS = ["""\
from e2e_lib import config as configuration
from e2e_lib.training.loop import trained_or_shipped
from e2e_lib.window.chat_window import ChatWindow, prepare
from e2e_lib.window.partners import Answerer, Partners

config = configuration.load("mini")
model, origin = trained_or_shipped(config, 0)
prepare()""", """\
window = ChatWindow(Partners(Answerer(origin, model, config.inference), config))""", "window"]


def cells_to_the_slider():
    """Notebook 02's own code, from its start to its slider, with the parameter that shows it."""
    cells = [cell.source for cell in nbformat.read(ROOT / "notebooks" / "02_straight_through_gumbel.ipynb", as_version=4).cells
             if cell.cell_type == "code"]
    end = next(i for i, source in enumerate(cells) if "temperature_slider(" in source)
    assert "interactive = False" in cells[0]
    return [cells[0].replace("interactive = False", "interactive = True"), *cells[1:end + 1]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of JupyterLab with a notebook that shows the window, chat.ipynb, and slider.ipynb."""
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    for name in ("e2e_lib", "pyproject.toml"):  # what a notebook knows the repository by
        (folder / name).symlink_to(ROOT / name)
    for name, cells in (("chat", CELLS), ("slider", cells_to_the_slider())):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / f"{name}.ipynb")
    settings = {name: str(folder / ".jupyter") for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip", "127.0.0.1", "--port", str(port),
         "--IdentityProvider.token=", "--ServerApp.root_dir", str(folder)],
        cwd=folder, env=os.environ | settings | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/lab", server)
        yield f"http://127.0.0.1:{port}/lab/tree/"
    finally:
        server.terminate()
        server.wait(timeout=60)


def run_all(page):
    """Opens the notebook and runs it; the kernel has to be there, or JupyterLab asks which one to take."""
    page.wait_for_selector(".jp-CodeCell", timeout=60_000)
    playwright.expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=60_000)
    page.get_by_role("menuitem", name=re.compile("^Run$")).click(timeout=60_000)
    page.get_by_text("Run All Cells", exact=True).click()


def test_the_window_works_in_jupyterlab(chromium, lab, photo):
    page = chromium.new_context(viewport={"width": 1300, "height": 1400}).new_page()
    page.goto(f"{lab}chat.ipynb")
    run_all(page)
    playwright.expect(box(page)).to_be_visible(timeout=120_000)
    check_a_chat(page, photo)
    page.reload()
    run_all(page)
    playwright.expect(box(page)).to_be_visible(timeout=120_000)
    assert say(page, "Hello again!", 2).inner_text()
    page.context.close()


def test_the_slider_of_notebook_02_changes_its_picture(chromium, lab):
    page = chromium.new_context(viewport={"width": 1300, "height": 1400}).new_page()
    page.goto(f"{lab}slider.ipynb")
    run_all(page)
    handle = page.get_by_role("slider")
    playwright.expect(handle).to_be_visible(timeout=120_000)
    pictures, before = {}, ""
    for key, temperature in ((None, "1"), ("ArrowLeft", "0.3"), ("ArrowLeft", "0.1"), ("ArrowRight", "0.3")):
        if key:
            handle.press(key)
        picture = page.locator(f"img[alt^='τ = {temperature} ·']")
        playwright.expect(picture).to_be_visible(timeout=30_000)
        playwright.expect(picture).not_to_have_attribute("src", before, timeout=30_000)  # it may come after its text
        assert size_drawn(picture)[0] and page.get_by_text(f"temperature τ: {temperature}", exact=True).count() == 1
        before = picture.get_attribute("src")
        pictures.setdefault(temperature, set()).add(before)
    assert [len(seen) for seen in pictures.values()] == [1, 1, 1] and len(set.union(*pictures.values())) == 3
    page.context.close()
