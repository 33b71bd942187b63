"""The page in a real browser: headless Chromium, driven by Playwright."""

import http.client
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import web_parts

from glmkit.feedback import FeedbackStore, default_path
from glmkit_serve.web import inspection
from glmkit_serve.web.page import Page

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
QUIET += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
HOSTILE = (
    "# Rivers\n\nThe Nile is 6650 km long.\n\n<script>alert(1)</script>"
    '<img src="http://evil.invalid/a">'
    "\n\n![x](http://evil.invalid/b.png) <details open>"
)
NILE = "How long is the Nile?"
SCRIPT = {
    "long": "word " * 400,
    "much longer": "word " * 500,
    NILE: 'See <img src=x onerror="alert(2)"> ![p](http://evil.invalid/c.png) and **bold**.',
}

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package: chromium)"),
]


@dataclass
class Site:
    """Where the page is served, and what it keeps."""

    address: str
    home: Path
    page: Page

    def ended(self, question):
        """Return how many words the model said to a question, when it has ended; else None."""
        journal = self.home / "journal"
        lines = journal.read_text().splitlines() if journal.exists() else []
        said = [line.split(" ", 1) for line in lines]
        return next((int(count) for count, asked in reversed(said) if asked == question), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    model = web_parts.Scripted(SCRIPT, 0.02, home / "journal")
    model.languages = frozenset({"en"})
    settings = {"port": 0, "max_file_mb": 0.01}
    page = web_parts.make_page(home, model, plugins=web_parts.real_documents(), **settings)
    with web_parts.served(page) as address:
        yield Site(address, home, page)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


class Seen:
    """A page in the browser, and all that it fetched or wanted to say."""

    def __init__(self, chromium, address, locale, **options):
        self.context = chromium.new_context(locale=locale, **options)
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.hosts, self.dialogs = set(), []
        self.page.on("request", self._note)
        self.page.on("dialog", lambda each: (self.dialogs.append(each.message), each.dismiss()))
        self.page.goto(address)
        self.page.wait_for_selector("#box textarea")

    def _note(self, request):
        if not request.url.startswith(("data:", "blob:")):
            self.hosts.add(request.url.partition("://")[2])

    def ask(self, question):
        self.page.fill("#box textarea", question)
        self.page.press("#box textarea", "Enter")

    def answer(self, containing):
        found = self.page.locator("#talk .bot", has_text=containing).last
        found.wait_for()
        return found

    def idle(self):
        """Wait until the next question may be asked."""
        self.page.wait_for_selector("#box .submit-button")

    def anew(self):
        self.page.click("#fresh")
        self.page.wait_for_selector("#talk .bot", state="detached")

    def box(self, selector):
        return self.page.locator(selector).first.bounding_box()


@pytest.fixture(scope="module")
def english(chromium, site):
    seen = Seen(chromium, site.address, "en-US", viewport=DESKTOP)
    yield seen
    seen.context.close()


def test_the_first_sight_fits_a_desktop_and_a_phone_without_scrolling(english):
    page = english.page
    assert page.url.endswith("/en/")
    for size in (PHONE, DESKTOP):
        page.set_viewport_size(size)
        page.get_by_text("How can I help?").wait_for()
        for selector in ("#talk", "#box", "#talk .example"):
            box = english.box(selector)
            assert box["x"] >= 0 and box["x"] + box["width"] <= size["width"], selector
            assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"], selector
        wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        assert len(set(page.evaluate(wide))) == 1, "the page can be scrolled sideways"
    side = english.box("#side")
    assert side["x"] > english.box("#talk")["x"] + english.box("#talk")["width"] - 1


def test_an_example_can_be_asked(english):
    english.page.locator("#talk .example").first.click()
    english.answer("You said: Explain in two sentences").wait_for()
    english.idle()
    english.anew()


def test_an_answer_streams_and_stops(english, site):
    english.ask("long")
    english.answer("word word")
    english.page.wait_for_selector("#box .stop-button")
    first = len(english.answer("word").inner_text())
    english.page.wait_for_function(
        "n => [...document.querySelectorAll('#talk .bot')].at(-1).innerText.length > n", arg=first
    )
    english.page.click("#box .stop-button")
    english.answer("Stopped.")
    english.idle()
    assert 0 < site.ended("long") < 400
    english.ask("and on")
    english.answer("You said: and on")
    english.idle()
    english.anew()


def test_a_document_is_uploaded_and_cited(english, site, tmp_path):
    document = tmp_path / "河流 rivers.md"
    document.write_text(HOSTILE)
    english.page.set_input_files("#files input[type=file]", document)
    english.page.get_by_text("Added: 河流 rivers.md").wait_for()
    english.ask(NILE)
    source = english.page.locator("#talk details.source").first
    source.wait_for()
    assert not source.locator(".passage").is_visible()
    source.locator("summary").click()
    passage = source.locator(".passage")
    passage.wait_for()
    for said in ("The Nile is 6650 km long.", "<script>alert(1)</script>", "![x](http://evil"):
        assert said in passage.inner_text()
    shown = english.answer("See <img src=x").inner_html()
    assert "<strong>bold</strong>" in shown and "<img" not in shown and "<script" not in shown
    english.idle()


def test_what_cannot_be_taken_is_said(english, tmp_path):
    large = tmp_path / "large.md"
    large.write_text("x" * 20_000)
    english.page.set_input_files("#files input[type=file]", large)
    english.page.get_by_text("maximum allowed size", exact=False).first.wait_for()


def test_what_was_sent_is_nowhere_that_others_can_look(english, site):
    """Runs after a document was sent."""
    from gradio.utils import get_upload_folder

    root = site.page.visits.root
    assert Path(get_upload_folder()) == root / "gradio" and any(root.iterdir())
    assert root.stat().st_mode & 0o077 == 0


def test_feedback_is_stored(english, site):
    store = FeedbackStore(default_path(site.home))
    english.page.locator("#talk .icon-button[aria-label=Dislike]").last.click()
    english.page.wait_for_selector("#better textarea")
    for selector in ("#box", "#save"):
        box = english.box(selector)
        assert box["y"] + box["height"] <= DESKTOP["height"], selector
    english.page.fill("#better textarea", "The Nile is 6650 km long.")
    english.page.click("#save")
    english.page.get_by_text("Your better answer is stored.").wait_for()
    assert english.page.get_by_text("Thank you: noted.").count() <= 1
    english.page.wait_for_selector("#better", state="detached")
    (row,) = store
    assert (row.rating, row.better) == (-1, "The Nile is 6650 km long.")
    assert row.messages[-1].content == NILE and row.sources[0].path == "河流 rivers.md"
    assert [pair.chosen for pair in store.pairs().pairs] == ["The Nile is 6650 km long."]


def test_a_picture_is_drawn(english):
    page = english.page
    page.get_by_role("tab", name="Draw").click()
    page.fill("#wish textarea", "a red dot")
    page.fill("#picture-seed textarea, #picture-seed input", "7")
    page.click("#draw")
    page.get_by_text("Drawn with seed 7.").wait_for()
    picture = page.locator("#pictures img").first
    picture.wait_for()
    page.wait_for_function("document.querySelector('#pictures img').naturalWidth === 8")
    page.get_by_role("tab", name="Chat").click()


def test_nothing_was_fetched_from_elsewhere_and_no_script_ran(english, site):
    """Runs after those that show what models and documents say."""
    own = site.address.partition("://")[2]
    assert {each for each in english.hosts if not each.startswith(f"{own}/")} == set()
    assert english.dialogs == []


def test_a_visitor_who_leaves_frees_the_model(chromium, site):
    """This one reads Chinese, on a phone."""
    options = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    seen = Seen(chromium, site.address, "zh-CN", **options)
    assert seen.page.url.endswith("/zh/")
    for text in ("有什么可以帮您？", "这里的模型只会英语。", "添加文档", "模型与设置"):
        seen.page.get_by_text(text).first.wait_for()
    box = seen.box("#box")
    assert box["y"] + box["height"] <= PHONE["height"]
    seen.ask("你好")
    seen.answer("You said: 你好")
    seen.idle()
    seen.page.locator("#talk .icon-button:is([aria-label=Like], [aria-label=赞])").last.click()
    seen.page.get_by_text("谢谢，已记录。").wait_for()
    *_, row = FeedbackStore(default_path(site.home))
    assert (row.rating, row.answer) == (1, "You said: 你好")
    seen.ask("much longer")
    seen.answer("word word")
    seen.context.close()
    until = time.monotonic() + 30
    while site.ended("much longer") is None and time.monotonic() < until:
        time.sleep(0.05)
    assert 0 < site.ended("much longer") < 500


def fetched(address, path, **headers):
    """Return status, headers and text of a page."""
    connection = http.client.HTTPConnection(address.partition("://")[2], timeout=60)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, dict(response.getheaders()), text


def test_the_first_page_is_in_the_language_of_the_browser(site):
    status, headers, _ = fetched(site.address, "/", **{"Accept-Language": "zh-CN,en;q=0.5"})
    assert status == 307 and headers["location"] == "zh/"
    assert fetched(site.address, "/")[1]["location"] == "en/"


def test_browsers_are_told_to_fetch_nothing_from_elsewhere(site):
    _, headers, text = fetched(site.address, "/en/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "fonts.googleapis" not in text and '"analytics_enabled":false' in text


def test_other_names_are_refused_where_no_key_is_asked_for(site):
    """Otherwise a page elsewhere could reach this one under a name of its own."""
    assert fetched(site.address, "/en/", Host="evil.example:7860")[0] == 403
    assert fetched(site.address, "/en/", Host="localhost")[0] == 200


# -- without a browser: the same page, and what no browser would send it ---------------------------


@contextmanager
def noting():
    """Run a server that notes what it is asked for; yields its address and the notes."""
    asked: list[str] = []

    class Door(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"A fjo")

        def log_message(self, *given):
            pass

    with HTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def add_file(client, **file):
    """Say that a file shall be added, as the page does after an upload; return what comes of it."""
    config = client.get("config").json()
    names = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
    (number,) = [
        each["id"]
        for each in config["dependencies"]
        if [names.get(one) for one in each["inputs"]] == ["files", "into"]
    ]
    sent = [{"meta": {"_type": "gradio.FileData"}, "orig_name": "a.md", **file}]
    event = {"data": [sent, "@own"], "fn_index": number, "session_hash": "s"}
    answer = client.post("gradio_api/queue/join", json=event)
    if answer.status_code == 200:
        with client.stream("GET", "gradio_api/queue/data?session_hash=s") as lines:
            return next(each for each in lines.iter_lines() if '"process_completed"' in each)
    return answer.text


def test_what_a_visitor_calls_a_file_is_not_fetched(site, monkeypatch):
    from gradio import processing_utils

    async def get(url):
        async with httpx.AsyncClient(verify=False, trust_env=False) as client:
            return await client.get(url)

    # It fetches from this machine for nobody, and from others for everybody: the test has no other.
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_get", get)
    given = {"timeout": 30, "verify": False, "trust_env": False}
    with httpx.Client(base_url=f"{site.address}/en/", **given) as client, noting() as door:
        there, asked = door
        assert "uploaded" in add_file(client, path=f"{there}/a.md")
        sent = client.post("gradio_api/upload", files={"files": ("nile.md", b"The Nile.")}).json()
        assert "nile.md" in add_file(client, path=sent[0], url=f"{there}/b.md")
        assert asked == []
        monkeypatch.setattr(inspection, "files_in", lambda event: ())
        add_file(client, path=f"{there}/a.md")
        assert asked == ["/a.md"]  # what this looks for does happen otherwise
