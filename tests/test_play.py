"""The page that samples in the browser: its build, its arithmetic, and the page in a browser."""

import base64
import functools
import http.server
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iclevr_diffusion import load_evaluator, load_pipeline
from iclevr_diffusion.demo.generation import floor_bounds
from iclevr_diffusion.evaluation.classifier_output import shown_names
from iclevr_diffusion.models.layout import CLEARANCE, Layout
from iclevr_diffusion.utils.rng import image_generators, randn

PLAY = Path(__file__).resolve().parents[1] / "docs" / "play"
WAIT = 120_000  # ms
SCENE = {"red sphere": [-0.5, 0.1], "blue cube": [0.0, -0.14]}
NEW_PLACE = [0.5, 0.3]

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@pytest.fixture(scope="module")
def build():
    """The program that builds the page, as a module."""
    spec = importlib.util.spec_from_file_location("build_play", PLAY / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def node(script):
    """Run a module that imports the page's; return what it prints, as JSON."""
    script = f"process.chdir({json.dumps(str(PLAY))});" + script
    imports = "".join(
        f"const {{ {names} }} = await import({json.dumps((PLAY / file).as_uri())});"
        for file, names in (
            ("random.js", "uniform, normal, shuffled"),
            ("sampling.js", "draftOf, floorBounds, sample, samplePositions, snapped, toPixels"),
        )
    )
    command = ["node", "--no-warnings", "--input-type=module", "-e", imports + script]
    result = subprocess.run(command, text=True, capture_output=True, check=True)
    return json.loads(result.stdout)


# The modules without a browser


@needs_node
def test_random_numbers_are_those_that_are_documented():
    values = node(
        "const next = uniform(7, 1); console.log(JSON.stringify([next(), next(), next()]))"
    )
    assert values == [next(numbers) for numbers in [xoshiro(7, 1)] for _ in range(3)]
    noise = np.array(node("console.log(JSON.stringify([...normal(20000, uniform(0))]))"))
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert (np.abs(noise) < 1).mean() == pytest.approx(0.683, abs=0.02)


def xoshiro(seed, stream):
    """xoshiro128** with the state of splitmix32, after the papers."""
    mask = 2**32 - 1
    counter = seed ^ (stream * 0x85EBCA6B & mask)
    state = []
    for _ in range(4):
        counter = (counter + 0x9E3779B9) & mask
        z = (counter ^ counter >> 16) * 0x21F0AAAD & mask
        z = (z ^ z >> 15) * 0x735A2D97 & mask
        state.append(z ^ z >> 15)
    a, b, c, d = state
    while True:
        yield (rotated(b * 5 & mask, 7) * 9 & mask) / 2**32
        shifted = b << 9 & mask
        c, d = c ^ a, d ^ b
        b, a = b ^ c, a ^ d
        c, d = c ^ shifted, rotated(d, 11)


def rotated(value, bits):
    return (value << bits | value >> (32 - bits)) & (2**32 - 1)


@needs_node
def test_positions_are_those_of_the_layout_clear():
    density = np.zeros((16, 16))
    density[4:13, 2:14] = 1
    client = {
        "image_size": 64,
        "positions": {
            "first": [0.0, -0.14],
            "density": density.tolist(),
            "clearance": CLEARANCE,
            "candidates": 64,
        },
    }
    scenes = np.array(
        node(
            f"const client = {json.dumps(client)}; const next = uniform(1);"
            "console.log(JSON.stringify(Array.from({length: 100}, () =>"
            " samplePositions(client, 3, next))))"
        )
    )
    assert (scenes[:, 0] == client["positions"]["first"]).all()
    others = scenes[:, 1:].reshape(-1, 2)
    pixels = (others + 1) / 2 * 64 - 0.5
    assert (pixels == pixels.round()).all()
    x, y = ((others + 1) / 2 * 16).astype(int).T
    assert (density[y, x] == 1).all()
    assert len(np.unique(others, axis=0)) > 100
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(scenes[:, i] - scenes[:, j], axis=-1).min() >= CLEARANCE


@needs_node
@pytest.mark.parametrize("turning", [None, [0, 1]])
def test_given_positions_are_rounded_as_by_the_layout(turning):
    client = {"image_size": 64, "positions": {"first": [0.0, -0.14], "turning": turning}}
    layout = Layout(64, None if turning is None else 24)
    layout.first.copy_(torch.tensor([0.0, -0.14]))
    given = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given[:40] = layout.first + 0.03 * given[:40]
    got = node(
        f"const client = {json.dumps(client)};"
        f"console.log(JSON.stringify({json.dumps(given.tolist())}.map((p) => snapped(client, p))))"
    )
    np.testing.assert_allclose(got, layout.snap(given), atol=1e-6)


@needs_node
def test_objects_can_be_put_where_the_app_allows_it():
    pipeline = load_pipeline("pretrained")
    client = {"positions": {"density": pipeline.position_prior.density.tolist()}}
    got = node(f"console.log(JSON.stringify(floorBounds({json.dumps(client)})))")
    assert got == floor_bounds(pipeline)


@needs_node
def test_a_draft_takes_a_third_of_the_steps():
    client = {"timesteps": list(range(8)), "alphas": list(range(8)), "sigmas": list(range(8))}
    draft = node(f"console.log(JSON.stringify(draftOf({json.dumps(client)})))")
    assert list(draft.values()) == [[1, 4, 7]] * 3


# The build


def test_a_package_other_than_the_pinned_one_is_refused(build, tmp_path, monkeypatch):
    def pack(command, **_):
        folder = Path(command[command.index("--pack-destination") + 1])
        (folder / "onnxruntime-web.tgz").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(build.shutil, "which", lambda name: name)
    monkeypatch.setattr(build.subprocess, "run", pack)
    with pytest.raises(SystemExit, match="integrity"):
        build.build(tmp_path / "play")
    assert list(tmp_path.iterdir()) == []


def test_without_npm_a_line_says_so(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="error: npm is missing"):
        build.build(tmp_path / "play")
    assert list(tmp_path.iterdir()) == []


# The page in a browser


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory, browser, build):
    """The address of the page, built and served as its documentation says."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    pytest.importorskip("onnx", reason="needs the extra onnx")
    folder = tmp_path_factory.mktemp("build") / "play"
    try:
        build.build(folder)
    except SystemExit as error:
        if "npm pack" not in str(error):
            raise
        pytest.skip(f"onnxruntime-web is not in npm's cache, and there is no network: {error}")
    with serve(folder) as address:
        yield address


@contextmanager
def serve(folder):
    """Serve a folder; yields the address of its page."""
    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture
def open_page(browser, address):
    """Open the page, ready to sample; afterwards, check that all went well."""
    contexts, complaints, hosts = [], [], set()

    def open_one(width=1440, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        context.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.goto(address)
        page.locator(".handle").first.wait_for()
        assert page.evaluate("crossOriginIsolated")  # which the server does not ask for
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []
    assert hosts == {address.split("/")[2]}


def finished(page):
    """Wait until the image is finished; return it, uint8, (H, W, 3)."""
    page.locator("#images[aria-busy=false]").wait_for()
    return shown(page)


def shown(page, name="x_0"):
    """The image that is shown, uint8, (H, W, 3)."""
    url = page.evaluate("(name) => document.getElementById(name).toDataURL()", name)
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as image:
        return np.array(image.convert("RGB"))


def put(page, scene):
    """Drag objects from the palette to the floor."""
    page.click("#clear")
    for label, position in scene.items():
        page.get_by_role("button", name=label, exact=True).hover()
        page.mouse.down()
        page.mouse.move(*on_screen(page, position))
        page.mouse.up()


def on_screen(page, position):
    box = page.locator("#floor").bounding_box()
    return [
        box[start] + (value + 1) / 2 * box[length]
        for start, length, value in (("x", "width", position[0]), ("y", "height", position[1]))
    ]


def center_of_red(image):
    """The position of what is red, in [-1, 1]."""
    red, green, blue = np.moveaxis(image.astype(float), -1, 0)
    rows, columns = np.nonzero(red - np.maximum(green, blue) > 30)
    return (np.array([columns.mean(), rows.mean()]) + 0.5) / 32 - 1


def test_the_service_worker_leaves_another_page_at_its_address_alone(browser, tmp_path):
    (tmp_path / "index.html").write_text('<link rel="icon" href="data:,">another page')
    shutil.copy(PLAY / "service-worker.js", tmp_path)
    with serve(tmp_path) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        count = "navigator.serviceWorker.getRegistrations().then((all) => all.length)"
        page.evaluate(
            "navigator.serviceWorker.register('service-worker.js')"
            ".then(() => navigator.serviceWorker.ready).then(() => {})"
        )
        assert page.evaluate(count) == 1
        page.reload()
        assert page.inner_text("body") == "another page"
        assert not page.evaluate("crossOriginIsolated")
        assert page.evaluate(count) == 0


def test_a_page_that_cannot_load_says_so_and_its_buttons_are_off(browser):
    with serve(PLAY) as address, browser.new_context() as context:  # without the network
        page = context.new_page()
        page.goto(address)
        page.locator("#status.failed").wait_for()
        assert page.inner_text("#status").startswith("This did not work: model.")
        page.keyboard.press("Tab")
        assert page.inner_text(":focus") == "onnxruntime-web"  # the first one that does something


def turned(label):
    """Return cosine and sine of four times a heading, for cubes."""
    return (0.6, 0.8) if "cube" in label else (0.0, 0.0)


@pytest.mark.slow
def test_the_page_samples_the_images_of_the_pipeline(open_page):
    page, pipeline = open_page(), load_pipeline("pretrained")
    labels = pipeline.vocabulary.encode_all([tuple(SCENE)])
    scene = {label: [*position, *turned(label)] for label, position in SCENE.items()}
    positions = torch.zeros(*labels.shape, 4)
    for label, position in scene.items():
        positions[0, pipeline.vocabulary.index[label]] = torch.tensor(position)
    expected = pipeline(labels, image_generators(0, [0], "sample"), positions=positions)
    generators = image_generators(0, [0], "sample")
    noise, final_noise = (randn(pipeline.image_shape, generators) for _ in range(2))
    given = {
        "noise": noise.flatten().tolist(),
        "finalNoise": final_noise.flatten().tolist(),
        "labels": list(SCENE),
        "positions": list(scene.values()),
    }
    outdated, got = page.evaluate(
        "(given) => Promise.all([iclevr.sample(given), iclevr.sample(given)])", given
    )
    assert outdated is None  # a sampling ends when another one begins
    difference = np.array(got).reshape(3, 64, 64) - expected[0].numpy()
    assert np.abs(difference).max() * 127.5 < 2


@pytest.mark.slow
def test_a_dragged_object_is_at_its_new_place_in_the_next_image(open_page):
    page = open_page()
    put(page, SCENE)
    before, noisy = finished(page), shown(page, "x_t")
    page.mouse.move(*on_screen(page, SCENE["red sphere"]))
    page.mouse.down()
    page.mouse.move(*on_screen(page, [0.1, 0.3]))
    page.mouse.move(*on_screen(page, NEW_PLACE))
    end = time.monotonic() + WAIT / 1000
    while np.abs(center_of_red(shown(page)) - NEW_PLACE).max() > 0.1:  # until a draft follows
        assert time.monotonic() < end
        page.wait_for_timeout(50)
    assert (shown(page, "x_t") != noisy).any()
    page.mouse.up()
    after = finished(page)
    assert np.abs(center_of_red(before) - SCENE["red sphere"]).max() < 0.1
    assert np.abs(center_of_red(after) - NEW_PLACE).max() < 0.1
    images = torch.tensor(np.stack([before, after])).permute(0, 3, 1, 2) / 127.5 - 1
    for names in shown_names(load_evaluator()(images).scores):
        assert set(names) == set(SCENE)


@pytest.mark.slow
def test_an_object_at_the_border_stays_in_the_window_of_a_phone(open_page):
    page = open_page(390)
    handle = page.locator(".handle", has_text="green cylinder")
    handle.hover()
    page.mouse.down()
    page.mouse.move(389, handle.bounding_box()["y"])
    page.mouse.up()
    assert "x 0.88," in handle.get_attribute("aria-label")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    name = handle.locator("span").bounding_box()
    assert name["x"] + name["width"] <= 390


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark")])
def test_the_page_fits_and_is_usable_by_keyboard(open_page, width, scheme):
    page = open_page(width, color_scheme=scheme)
    first = finished(page)
    assert first.std() > 5  # an image
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= (44 if width < 500 else 40)
        assert button.get_attribute("aria-label") or button.inner_text().strip()
    handle = page.locator(".handle", has_text="cyan cube")
    handle.focus()
    before = handle.get_attribute("aria-label")
    page.keyboard.press("Shift+ArrowRight")
    assert handle.get_attribute("aria-label") != before
    page.keyboard.press("Delete")
    assert handle.count() == 0
    assert (
        page.get_by_role("button", name="cyan cube", exact=True).get_attribute("aria-pressed")
        == "false"
    )
    assert page.locator(".handle:focus").count() == 1
    finished(page)
    assert page.inner_text("#announcement") == "New image: red sphere, green cylinder."
    assert not page.locator("#middle").is_visible()
    page.get_by_role("button", name="red sphere", exact=True).click()
    assert page.locator("#middle").is_visible()
    page.get_by_role("button", name="red sphere", exact=True).click()
    finished(page)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "green-cylinder_red-sphere_seed0.png"
    page.get_by_role("button", name="Remove all").press("Enter")
    assert page.locator("#palette button:focus").count() == 1  # not lost with the disabled button
    finished(page)
    assert page.inner_text("#announcement") == "No objects."


@pytest.mark.slow
def test_the_palette_has_no_overlapping_buttons_and_only_the_left_button_drags(open_page):
    page = open_page(920)
    boxes = [button.bounding_box() for button in page.locator("#palette button").all()]
    assert all(a["x"] + a["width"] <= b["x"] for a, b in pairwise(boxes[:8]))
    page.get_by_role("button", name="yellow cube", exact=True).hover()
    page.mouse.down(button="right")
    page.mouse.move(*on_screen(page, NEW_PLACE))
    assert page.locator(".handle").count() == 3


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_twenty_images_in_a_row_take_no_more_memory(open_page, browser):
    page = open_page()
    for number in range(22):
        page.click("#new-noise")
        finished(page)
        if number == 1:
            before = memory(browser)
    assert memory(browser) < before + 30 * 2**20


def memory(browser):
    """Bytes that the browser's pages occupy, their workers and WebAssembly included."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    status = [
        Path(f"/proc/{process['id']}/status").read_text("ascii")
        for process in processes
        if process["type"] == "renderer"
    ]
    return sum(1024 * int(re.search(r"VmRSS:\s+(\d+)", text)[1]) for text in status)
