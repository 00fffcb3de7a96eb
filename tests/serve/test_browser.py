"""The page in a real browser, headless: what a person does with it, by mouse and by keyboard."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
"""An EXIF block that says: turn me a quarter to the right."""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def page(browser):
    """An empty tab; the test fails on an error of the page, a policy violation or a foreign request."""
    with browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True) as context:
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.problems, tab.asked = [], []
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on(
            "console",
            lambda said: tab.problems.append(said.text) if "Content Security" in said.text else None,
        )
        tab.on("request", lambda request: tab.asked.append(request.url))
        yield tab
        assert tab.problems == []
        assert {url.split("/")[2] for url in tab.asked if url.startswith("http")} <= {tab.url.split("/")[2]}


def give(tab, name, content, kind="image/png"):
    tab.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})


def see(tab, text):
    """Wait until the line below the picture begins like this."""
    tab.wait_for_function("text => document.getElementById('status').textContent.startsWith(text)", arg=text)


def predictions(tab):
    return sum("/predict" in url for url in tab.asked)


def slide(tab, value):
    tab.locator("#threshold").fill(str(value))


def counts(tab):
    return {
        row.locator(".name").inner_text(): row.locator(".count").inner_text()
        for row in tab.locator("#classes label").all()
    }


def test_a_picture_shows_its_boxes_and_slider_and_filter_ask_nobody(page, address, picture):
    page.goto(address())
    give(page, "shelf.png", picture((140, 90, 10), (64, 48)))
    see(page, "1 of 3 objects shown · 64 × 48 pixels")  # 140/255 is above the model's own 0.5
    assert page.locator("#boxes .box").count() == 1
    assert page.locator("#boxes text").text_content() == "red 0.55"
    slide(page, 0.3)
    see(page, "2 of 3")
    assert counts(page) == {"red": "1", "green": "1", "blue": "0"}
    slide(page, 0)
    see(page, "3 of 3")
    assert page.locator("#boxes .box").count() == 3
    page.get_by_label("red").uncheck()
    see(page, "2 of 3")
    page.get_by_role("button", name="None").click()
    see(page, "0 of 3")
    assert page.locator("#boxes .box").count() == 0
    page.get_by_role("button", name="All", exact=True).click()
    see(page, "3 of 3")
    page.get_by_label("Labels on the image").uncheck()
    assert page.locator("#boxes text").count() == 0
    assert predictions(page) == 1


def test_boxes_lie_on_the_picture_in_its_own_pixels(page, address, picture):
    page.goto(address())
    give(page, "wide.png", picture(size=(200, 50)))
    see(page, "1 of 3")
    box, photo = page.locator("#boxes .box").bounding_box(), page.locator("#photo").bounding_box()
    for side in ("x", "y", "width", "height"):
        assert box[side] == pytest.approx(photo[side], abs=4)  # the frame of a box is drawn half outside


def test_a_turned_photograph_stands_upright_under_its_boxes(page, address, picture):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = (250, 10, 10)  # the left half, which the turn makes the upper
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, exif=TURNED)
    page.goto(address())
    give(page, "phone.jpg", stream.getvalue(), "image/jpeg")
    see(page, "0 of 3 objects shown · 40 × 80 pixels")
    assert page.evaluate("[photo.naturalWidth, photo.naturalHeight]") == [40, 80]
    assert page.locator("#note").inner_text() == ""
    slide(page, 0)
    page.get_by_label("Labels on the image").uncheck()
    saved = download(page, "Download image", "phone-boxes.jpg")
    shown = np.asarray(Image.open(io.BytesIO(saved)).convert("RGB")).astype(int)
    assert shown.shape == (80, 40, 3)
    assert shown[20, 20, 0] > 200 and shown[60, 20].max() < 40


def download(tab, button, name):
    with tab.expect_download() as waiting:
        tab.get_by_role("button", name=button).click()
    assert waiting.value.suggested_filename == name
    return waiting.value.path().read_bytes()


def test_what_is_shown_can_be_kept(page, address, picture):
    page.goto(address())
    give(page, "a.b.png", picture((200, 150, 100), (60, 40)))
    slide(page, 0.5)
    see(page, "2 of 3")
    page.get_by_label("red").uncheck()
    kept = json.loads(download(page, "Download JSON", "a.b.json"))
    detection = {"class_name": "green", "category_id": 20, "score": pytest.approx(150 / 255, abs=1e-6)}
    detection |= {"box": [0, 0, 60, 40]}
    assert kept == {
        "threshold": 0.5,
        "images": [{"name": "a.b.png", "width": 60, "height": 40, "detections": [detection]}],
    }
    drawn = np.asarray(
        Image.open(io.BytesIO(download(page, "Download image", "a.b-boxes.png"))).convert("RGB")
    )
    assert drawn.shape == (40, 60, 3)
    assert drawn[20, 0].tolist() == [0x00, 0x8D, 0xF9]  # the second class's colour
    assert drawn[35, 30].tolist() == [200, 150, 100]


def test_a_picture_keeps_its_name_though_another_is_chosen_while_it_is_made(page, address, picture):
    page.goto(address())
    page.evaluate("""() => {
        const make = HTMLCanvasElement.prototype.toBlob;
        HTMLCanvasElement.prototype.toBlob = function (...rest) {
            window.finish = () => make.apply(this, rest);
        };
    }""")
    give(page, "first.png", picture())
    see(page, "1 of 3")
    page.get_by_role("button", name="Download image").click()
    give(page, "second.png", picture(size=(60, 50)))
    see(page, "1 of 3 objects shown · 60 × 50")
    with page.expect_download() as waiting:
        page.evaluate("finish()")
    assert waiting.value.suggested_filename == "first-boxes.png"


def test_a_change_of_the_windows_size_takes_the_focus_from_nobody(page, address, picture):
    page.goto(address())
    give(page, "red.png", picture((140, 90, 10), (400, 300)))
    slide(page, 0)
    see(page, "3 of 3")
    page.locator("#found button").first.focus()
    page.keyboard.press("ArrowDown")
    label = page.locator("#boxes rect").last
    before = label.get_attribute("height")
    page.set_viewport_size({"width": 500, "height": 800})
    page.wait_for_function(
        "before => [...document.querySelectorAll('#boxes rect')].at(-1).getAttribute('height') !== before",
        arg=before,
    )
    assert page.evaluate("document.activeElement.textContent") == "green0.35"
    assert page.locator("#boxes .on").first.get_attribute("data-place") == "1"


def test_a_text_file_named_jpg_is_told_in_words_and_the_next_picture_is_answered(page, address, picture):
    page.goto(address())
    give(page, "notes.jpg", b"buy milk", "image/jpeg")
    page.get_by_role("alert").get_by_text(
        "notes.jpg: not a JPEG, PNG, TIFF, BMP, WebP, GIF, PNM, JPEG 2000, AVIF or HEIC image"
    ).wait_for()
    assert page.locator("#boxes .box").count() == 0 and not page.locator("#view").is_visible()
    give(page, "red.png", picture())
    see(page, "1 of 3")
    assert not page.locator("#error").is_visible()


def test_a_file_that_is_too_large_is_not_even_sent(page, address):
    page.goto(address(max_bytes=1000))
    give(page, "large.png", b"x" * 2000)
    page.get_by_role("alert").get_by_text("large.png has 0.0 MB").wait_for()
    assert predictions(page) == 0


def test_a_picture_that_only_the_server_can_read_has_its_boxes_on_nothing(page, address):
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (255, 0, 0)).save(stream, "TIFF")
    page.goto(address())
    give(page, "scan.tif", stream.getvalue(), "image/tiff")
    see(page, "1 of 3 objects shown · 64 × 48 pixels")
    assert "cannot show" in page.locator("#note").inner_text()
    assert page.get_by_role("button", name="Download image").is_disabled()
    assert page.locator("#boxes .box").bounding_box()["height"] > 100


def test_the_token_is_asked_for_until_it_is_right(page, address, picture):
    page.goto(address(token="sesame"))
    page.get_by_label("Token", exact=True).fill("simsalabim")
    page.keyboard.press("Enter")
    page.get_by_text("That token is not the right one.").wait_for()
    page.get_by_label("Token", exact=True).fill("\u200b“sesame”\u00a0")  # as a copy out of a document may be
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("finds red, green, blue").wait_for()
    give(page, "red.png", picture())
    see(page, "1 of 3")
    assert page.evaluate("localStorage.length") == 0 and "sesame" not in page.url
    page.reload()
    page.get_by_text("finds red, green, blue").wait_for()  # this tab still knows it


def test_the_dialog_can_be_left_and_the_reason_is_told(page, address, picture):
    page.goto(address(token="sesame"))
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("alert").get_by_text("without the token").wait_for()
    give(page, "red.png", picture())
    page.get_by_label("Token", exact=True).fill("sesame")
    page.keyboard.press("Enter")
    see(page, "1 of 3")


def test_everything_works_from_the_keyboard(page, address, picture):
    page.goto(address())
    page.keyboard.press("Tab")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files({"name": "red.png", "mimeType": "image/png", "buffer": picture((140, 90, 10))})
    see(page, "1 of 3")
    focused = "document.activeElement.id || document.activeElement.textContent"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "threshold"
    page.keyboard.press("Home")
    see(page, "3 of 3")
    page.keyboard.press("End")
    see(page, "0 of 3")
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#boxes text").count() == 0
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")  # the first class
    see(page, "2 of 3")
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate(focused) == "save-json"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "green0.35"
    assert page.locator("#boxes .on").get_attribute("data-place") == "0"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == "blue0.04"
    assert page.locator("#boxes .on").get_attribute("data-place") == "1"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "save-image"


def test_a_picture_can_be_pasted_and_dropped(page, address, picture):
    page.goto(address())
    handing = """([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "handed.png", {type: "image/png"}));
        const event = kind === "paste"
            ? new ClipboardEvent(kind, {clipboardData: data})
            : new DragEvent(kind, {dataTransfer: data});
        document.body.dispatchEvent(Object.defineProperty(event, "bubbles", {value: true}));
        document.dispatchEvent(event);
    }"""
    page.evaluate(handing, ["drop", list(picture(size=(50, 40)))])
    see(page, "1 of 3 objects shown · 50 × 40")
    page.evaluate(handing, ["paste", list(picture(size=(60, 40)))])
    see(page, "1 of 3 objects shown · 60 × 40")


def test_a_busy_server_is_asked_again(page, address, picture):
    page.goto(address())
    answers = iter([503, 200])

    def busy(route):
        if next(answers) == 503:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"detail": "busy"})
        else:
            route.continue_()

    page.route("**/predict*", busy)
    give(page, "red.png", picture())
    see(page, "The server has much to do; trying again in 1 s.")
    see(page, "1 of 3")


def test_the_last_of_two_pictures_is_the_one_that_is_shown(page, address, colours, picture, until):
    page.goto(address())
    colours.go.clear()
    give(page, "first.png", picture(size=(50, 40)))
    until(lambda: page.evaluate("1") and predictions(page) == 1)
    give(page, "second.png", picture((0, 0, 255), size=(60, 40)))
    until(lambda: page.evaluate("1") and predictions(page) == 2)
    colours.go.set()
    see(page, "1 of 3 objects shown · 60 × 40")
    assert page.locator("#boxes text").text_content() == "blue 1.00"


def test_nothing_is_cut_off_on_a_phone(page, address, picture):
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto(address())
    give(page, "red.png", picture(size=(400, 300)))
    see(page, "1 of 3")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
