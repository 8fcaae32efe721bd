"""The page in a browser, against a real server."""

import os
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from vitalk.deploy.server import Settings, create_app

EXAMPLES = Path(__file__).parents[3] / "examples"
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
PATIENCE = 60_000  # ms; machines that test are slow
TOKEN = "a token of some length"


def listening(**settings):
    """(Address, the page's folder, how to stop) of a server with the page, in a thread."""
    app = create_app(Settings(**settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 120
    while not server.started and time.monotonic() < end:
        time.sleep(0.05)
    assert server.started, "the server did not start within two minutes"

    def stop():
        server.should_exit = True
        thread.join(30)

    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", app.state.page_folder, stop


@pytest.fixture(scope="module")
def served():
    """(Address, the page's folder), which goes with the server."""
    address, folder, stop = listening(pixels=1_000_000, picture_bytes=2**20, waiting=8)
    yield address, folder
    stop()
    assert not folder.exists()


@pytest.fixture(scope="module")
def address(served):
    return served[0]


@pytest.fixture(scope="module")
def browser():
    """Chromium; where there is none, continuous integration fails and others are told what to install."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no chromium on the path; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser):
    """One for all pages, so that scripts are compiled once."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


@pytest.fixture
def opened(context):
    """How to open an address at a size; a request that leaves this machine and an error in a script are failures."""
    pages, faults = [], []

    def opener(address, size=DESKTOP):
        def local(request):
            if not request.url.startswith((f"{address}/", "data:", f"blob:{address}/")):
                faults.append(request.url)

        page = context.new_page()
        pages.append(page)
        page.set_viewport_size(size)
        page.on("request", local)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
        page.goto(address)
        return page

    yield opener
    for page in pages:
        page.close()
    assert faults == []


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Where screenshots are kept: VITALK_SCREENSHOTS, or pytest's own folder."""
    folder = Path(os.environ.get("VITALK_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def playable(page, box):
    """Seconds of the sound in ``box``, as the browser reads its file."""
    audio = page.locator(f"{box} audio[src]").first
    audio.wait_for(state="attached")
    source = audio.evaluate("element => element.src")
    return page.evaluate(
        """source => new Promise((resolve, reject) => {
            const sound = new Audio(source);
            sound.onloadedmetadata = () => resolve(sound.duration);
            sound.onerror = () => reject(sound.error.message);
        })""",
        source,
    )


def shown_width(page, box):
    """Pixels of the picture in ``box``, once it is drawn."""
    picture = page.locator(f"{box} img")
    picture.wait_for()
    assert len(picture.get_attribute("alt")) > 20
    return picture.evaluate("element => element.decode().then(() => element.naturalWidth)")


def test_it_speaks(address, opened, shots):
    page = opened(address)
    page.get_by_label("Text", exact=True).fill("A small voice on a plain machine.")
    page.get_by_role("button", name="Speak", exact=True).click()
    page.get_by_role("status").filter(has_text="Said").wait_for()
    assert 1 < playable(page, "#sound") < 10
    assert shown_width(page, "#spoken-picture") > 400
    page.screenshot(path=shots / "speak.png")


def test_speed_is_followed(address, opened):
    page = opened(address)
    page.get_by_label("Text", exact=True).fill("One, two, three, four, five, six, seven.")
    page.locator("#speed input[type=number]").fill("4")
    page.get_by_role("button", name="Speak", exact=True).click()
    page.get_by_role("status").filter(has_text="Said").wait_for()
    assert 0.3 < playable(page, "#sound") < 1.5


def test_an_empty_text_is_told(address, opened, shots):
    page = opened(address)
    page.get_by_label("Text", exact=True).fill("")
    page.get_by_role("button", name="Speak", exact=True).click()
    alert = page.get_by_role("alert").filter(has_text="There is nothing to say; type some words first.")
    alert.wait_for()
    assert page.locator("#sound audio[src]").count() == 0
    page.screenshot(path=shots / "empty.png")


def test_it_sees_and_says(address, opened, shots):
    page = opened(address)
    tab(page, "See and say")
    page.locator("#seen input[type=file]").set_input_files(EXAMPLES / "cat.png")
    page.get_by_role("status").filter(has_text="I see a cat.").wait_for()
    assert "cat" in page.locator("#labels").inner_text()
    assert 1 < playable(page, "#seen-sound") < 10
    page.screenshot(path=shots / "see.png")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"These are words, no picture.", "is not a picture"), ("bomb", "more than 1 million pixels")],
)
def test_what_is_no_picture_is_told(address, opened, tmp_path, content, sentence):
    file = tmp_path / "picture.png"
    if content == "bomb":
        from PIL import Image

        Image.new("1", (20_000, 20_000)).save(file)  # half a gigabyte once it is unpacked
    else:
        file.write_bytes(content)
    page = opened(address)
    tab(page, "See and say")
    page.locator("#seen input[type=file]").set_input_files(file)
    page.get_by_role("alert").filter(has_text=sentence).wait_for()


def test_tokens_by_keep_rate(address, opened, shots):
    page = opened(address)
    tab(page, "Token reduction")
    page.locator("#reduced input[type=file]").set_input_files(EXAMPLES / "cat.png")
    page.get_by_role("status").filter(has_text="26 of 64 tokens are left at the end: 41%").wait_for()
    assert shown_width(page, "#tokens-picture") > 1000
    page.locator("#keep input[type=number]").fill("0.25")
    page.get_by_role("button", name="Reduce").click()
    page.get_by_role("status").filter(has_text="16 of 64 tokens are left at the end: 25%").wait_for()
    page.screenshot(path=shots / "tokens.png")


def test_measurements(address, opened, shots):
    page = opened(address)
    tab(page, "Benchmarks")
    assert page.get_by_role("table").count() >= 4
    page.get_by_role("button", name="Measure here").click()
    page.get_by_role("status").filter(has_text="real-time factor").wait_for()
    page.get_by_role("rowheader", name="Time to first audio").wait_for()
    page.screenshot(path=shots / "benchmarks.png")


def test_a_phone_needs_no_sideways_scrolling(address, opened, shots):
    page = opened(address, PHONE)
    page.get_by_role("button", name="Speak", exact=True).click()
    page.get_by_role("status").filter(has_text="Said").wait_for()
    shown_width(page, "#spoken-picture")
    for name in ("Speak", "See and say", "Token reduction", "Benchmarks"):
        if page.get_by_role("tab", name=name).count() == 0:
            page.locator(".overflow-menu button").first.click()
            page.locator(".overflow-dropdown").get_by_text(name).click()
        else:
            tab(page, name)
        page.wait_for_timeout(300)
        widths = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert max(widths[:2]) <= widths[2], name
        page.screenshot(path=shots / f"phone-{name.split()[0].lower()}.png", full_page=True)


def test_the_keyboard_is_enough(address, opened):
    page = opened(address)
    page.get_by_role("button", name="Speak", exact=True).wait_for()
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate("[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]")
        if focused[0] == "speak":
            break
    assert focused == ["speak", "solid"]
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="Said").wait_for()


def test_everything_has_a_name(address, opened):
    page = opened(address)
    assert page.evaluate("document.documentElement.lang") == "en"
    page.wait_for_function("document.title === 'vitalk'")
    page.get_by_role("heading", level=1, name="vitalk").wait_for()
    for name in ("Speak", "See and say", "Token reduction", "Benchmarks"):
        tab(page, name)
        page.wait_for_timeout(300)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("input, textarea, select, button, img")]
                .filter(e => e.checkVisibility() && e.type !== "hidden")
                .filter(e => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.alt || e.title
                    || e.labels?.[0]?.innerText.trim() || (e.tagName === "BUTTON" && e.innerText.trim())))
                .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == [], name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(address, opened, scheme):
    page = opened(address)
    page.emulate_media(color_scheme=scheme)
    page.reload()
    page.get_by_role("button", name="Speak", exact=True).click()
    page.get_by_role("status").filter(has_text="Said").wait_for()
    faint = page.evaluate(
        """() => {
            const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
            const read = colour => {
                pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
                return [...pen.getImageData(0, 0, 1, 1).data];
            };
            const light = colour => colour.slice(0, 3)
                .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
            const behind = e => {
                for (; e; e = e.parentElement) {
                    const colour = read(getComputedStyle(e).backgroundColor);
                    if (colour[3] > 127) return colour;
                }
                return [255, 255, 255];
            };
            return [...document.querySelectorAll("main *")]
                .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
                .map(e => [light(read(getComputedStyle(e).color)), light(behind(e)), e.innerText])
                .filter(([a, b]) => Math.max(a, b) / Math.min(a, b) < 4.5);
        }"""
    )
    assert faint == []


def test_with_a_token_the_page_asks_for_it(opened, shots):
    address, _, stop = listening(token=TOKEN)
    try:
        assert httpx.get(f"{address}/config").status_code == 401
        assert httpx.post(f"{address}/gradio_api/queue/join", json={"data": []}).status_code == 401
        assert httpx.post(f"{address}/gradio_api/upload", files={"files": b"x"}).status_code == 401
        wrong = httpx.post(f"{address}/login", data={"username": "vitalk", "password": "guess"})
        assert wrong.status_code == 400
        page = opened(address)
        page.get_by_label("username").fill("vitalk")
        page.get_by_label("password").fill(TOKEN)
        page.screenshot(path=shots / "login.png")
        page.get_by_role("button", name="Login").click()
        page.get_by_role("button", name="Speak", exact=True).click()
        page.get_by_role("status").filter(has_text="Said").wait_for()
        assert 1 < playable(page, "#sound") < 15
    finally:
        stop()


def test_the_api_stands_before_the_page(address):
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
    assert "swagger" in httpx.get(f"{address}/docs").text
    assert httpx.get(f"{address}/v1/models").json()["object"] == "list"


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", str(EXAMPLES / "cat.png"), "../../etc/passwd"])
def test_no_other_file_is_sent(address, path):
    answer = httpx.get(f"{address}/gradio_api/file={path}")
    assert answer.status_code == 404


def test_the_server_fetches_nothing_from_elsewhere(address):
    assert httpx.get(f"{address}/gradio_api/file=https://example.org/a.png").status_code == 404
    file = {"path": "https://example.org/a.png", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file], "fn_index": 0, "session_hash": "x"}
    assert httpx.post(f"{address}/gradio_api/queue/join", json=body).status_code == 400


def test_uploads_that_are_refused_leave_nothing(served):
    address, folder = served
    before = sorted(folder.rglob("*"))
    for length in (3 * 2**19, 3 * 2**20):  # too long for a picture, and for a request
        answer = httpx.post(f"{address}/gradio_api/upload", files={"files": ("x.png", bytes(length))})
        assert answer.status_code == 413
    assert sorted(folder.rglob("*")) == before
