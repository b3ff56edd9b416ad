"""The app as its visitors meet it: its command, its server and its page in a browser."""

import base64
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from iclevr_diffusion import app, export
from iclevr_diffusion.cli.space_export import GRADIO, NEEDED
from iclevr_diffusion.diffusion.io import load_model

ROOT = Path(__file__).resolve().parents[2]

HTML = "<img src=x onerror=alert(1)>"
CUBE = {"label": "red cube", "x": 0.5, "y": 0.25}
SETTINGS = ["dpm_solver", 1, 1.0, 0]  # one step
GENERATE, KEEP = 0, 5  # numbers of the page's events
WIDTHS = (390, 1440)
IN_VIEW = """() => {
  const box = document.querySelector('.kept').getBoundingClientRect();
  return box.top >= 0 && box.bottom <= innerHeight;
}"""

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed (extra app)"
)


def test_without_gradio_the_command_says_what_to_install(run, monkeypatch, weights_folder):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name)
    )
    code, _, err = run(app, f"weights={weights_folder}", f"port={free_port()}")
    assert code == 2
    assert err == "error: app needs the package gradio: pip install '.[app]'\n"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_a_space_holds_the_package_the_weights_and_their_requirements(run, weights_folder):
    code, out, err = run(export, f"weights={weights_folder}", "format=space", "out=space")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "space/iclevr_diffusion"
    assert load_model("space/weights").sampling == load_model(weights_folder).sampling
    assert f"sdk_version: {GRADIO}\n" in Path("space/README.md").read_text()
    lines = Path("space/requirements.txt").read_text().splitlines()
    assert len(lines) == len(NEEDED) + 1
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = declared["optional-dependencies"]["app"]
    assert GRADIO in Requirement(wanted).specifier
    if importlib.util.find_spec("gradio") is None:
        return
    code = "import sys, iclevr_diffusion.demo.server as it; print(it.__file__, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd="space", capture_output=True, text=True)
    file, *modules = done.stdout.split()
    assert Path(file) == Path("space/iclevr_diffusion/demo/server.py").resolve()
    assert not {*modules} & {"hydra", "omegaconf", "lightning", "torchmetrics"}


# No socket of the server may reach further than this machine.
GUARDED = """
import runpy, socket, sys
connect = socket.socket.connect
def guarded(self, address):
    if isinstance(address, tuple) and not address[0].startswith("127.") and address[0] != "::1":
        print("left this machine:", address, flush=True)
        raise OSError("no network")
    return connect(self, address)
socket.socket.connect = guarded
sys.argv[0] = "app"
runpy.run_module("iclevr_diffusion.app", run_name="__main__", alter_sys=True)
"""


class Server:
    """A running app."""

    def __init__(self, folder):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", GUARDED, f"port={port}", "limits.kept=2", "limits.steps=12"],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": str(folder)},
            )

    def wait(self):
        end = time.monotonic() + 300
        while self.url not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def send(self, path, content, **headers):
        """The status of a request."""
        body = json.dumps(content).encode()
        headers = {"content-type": "application/json", **headers}
        request = urllib.request.Request(self.url + path, body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def ask(self, session, event, data):
        """The messages that the page gets, up to the end of its event."""
        content = {"data": data, "fn_index": event, "session_hash": session}
        assert self.send("/gradio_api/queue/join", content) == 200
        messages = []
        stream = f"{self.url}/gradio_api/queue/data?session_hash={session}"
        with urllib.request.urlopen(stream, timeout=120) as lines:
            for line in lines:
                if line.startswith(b"data:"):
                    messages.append(json.loads(line[5:]))
                    if messages[-1]["msg"] in ("process_completed", "unexpected_error"):
                        break
        return messages

    def generate(self, session, scene, settings=SETTINGS):
        return self.ask(session, GENERATE, [scene, *settings, None])

    def memory(self):
        """Resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("app"))
    server.wait()
    yield server
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 128 + signal.SIGINT
    log = server.log.read_text()
    assert log.endswith("stopped: interrupted\n")
    assert "left this machine" not in log
    assert "Traceback" not in log


sessions = map("visitor{}".format, count())


@needs_gradio
@pytest.mark.slow
def test_a_visitor_gets_each_step_and_the_image(server):
    messages = server.generate(next(sessions), {"objects": [CUBE]}, ["ddim", 2, 1.0, 0])
    assert messages[-1]["success"]
    steps = [m for m in messages if m["msg"] == "process_generating"]
    assert len(steps) >= 2
    assert "step 1 of 2" in json.dumps(steps[0])


@needs_gradio
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "settings"),
    [
        (HTML, SETTINGS),
        ({"objects": [CUBE | {"label": HTML}]}, SETTINGS),
        ({"objects": [CUBE | {"x": HTML}]}, SETTINGS),
        ({"objects": [CUBE | {"x": 1e308}]}, SETTINGS),
        ({"objects": [CUBE]}, ["dpm_solver", 10**9, 1.0, 0]),
        ({"objects": [CUBE]}, ["dpm_solver", 1, 1.0, 10**30]),
        ({"objects": [CUBE]}, ["dpm_solver", 1, HTML, 0]),
        ({"objects": [CUBE]}, [HTML, 1, 1.0, 0]),
        ({"objects": [CUBE]}, ["dpm_solver", None, 1.0, 0]),
    ],
    ids=str,
)
def test_what_no_page_sends_is_refused(server, scene, settings):
    answer = server.generate(next(sessions), scene, settings)[-1]
    assert not answer["success"]
    assert "base64" not in json.dumps(answer)


@needs_gradio
@pytest.mark.slow
def test_nothing_else_of_the_server_is_open(server):
    assert server.send("/gradio_api/upload", {}) == 404
    assert server.send("/gradio_api/run/predict", {}) == 404
    assert server.send("/gradio_api/queue/join", "x" * 100_000) == 413
    for path in ("/gradio_api/file=/etc/passwd", "/monitoring", "/docs", "/gradio_api/runs"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.url + path, timeout=60)


@needs_gradio
@pytest.mark.slow
def test_two_visitors_at_once_do_not_mix(server):
    answers = {}

    def visit(label):
        session = next(sessions)
        messages = server.generate(session, {"objects": [CUBE | {"label": label}]})
        gallery = server.ask(session, KEEP, [None])[-1]
        answers[label] = json.dumps(messages), json.dumps(gallery)

    labels = ("red cube", "cyan sphere")
    threads = [threading.Thread(target=visit, args=(label,)) for label in labels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for label, other in (labels, labels[::-1]):
        assert all(label in answer and other not in answer for answer in answers[label])


@needs_gradio
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc")
def test_twenty_visitors_leave_the_memory_as_it_was(server):
    def visits(number):
        for _ in range(number):
            session = next(sessions)
            assert server.generate(session, {"objects": [CUBE]})[-1]["success"]
            assert server.ask(session, KEEP, [None])[-1]["success"]
            server.send("/gradio_api/reset", {"event_id": "0", "fn_index": 0})

    visits(5)
    before = server.memory()
    visits(20)
    assert server.memory() - before < 20


def pixels(page):
    """The image on the floor, (H, W, 3), as float."""
    source = page.eval_on_selector(".surface img", "image => image.src")
    content = base64.b64decode(source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=float)


def center_of_red(image):
    """The middle (x, y) of what is red, in [0, 1]."""
    y, x = np.nonzero((image[..., 0] > 1.4 * image[..., 1]) & (image[..., 0] > 40))
    return (np.median(x) + 0.5) / image.shape[1], (np.median(y) + 0.5) / image.shape[0]


@pytest.fixture(params=WIDTHS)
def page(request, browser, server):
    """The page of a new visitor; what it logs and asks for must be its own affair."""
    context = browser.new_context(
        viewport={"width": request.param, "height": 900}, accept_downloads=True
    )
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    page.wait_for_selector(".handle", timeout=60_000)
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((server.url, "data:", "blob:"))] == []


def finished(page, before):
    """Wait until there is another image, and all of its steps have been taken."""
    page.wait_for_function(
        """before => document.querySelector('.surface img').src !== before
        && !document.querySelector('.what').textContent.includes('step')""",
        arg=before,
        timeout=120_000,
    )


@needs_gradio
@pytest.mark.slow
def test_a_dragged_object_is_at_its_new_place_in_the_next_image(page):
    before = pixels(page)
    source = page.eval_on_selector(".surface img", "image => image.src")
    floor = page.locator(".surface").bounding_box()
    x, y = center_of_red(before)
    assert x > 0.6
    page.mouse.move(floor["x"] + x * floor["width"], floor["y"] + y * floor["height"])
    page.mouse.down()
    page.mouse.move(floor["x"] + 0.4 * floor["width"], floor["y"] + 0.8 * floor["height"], steps=4)
    page.mouse.up()
    finished(page, source)
    assert center_of_red(pixels(page)) == pytest.approx((0.4, 0.8), abs=0.08)
    cells = page.locator("#findings tr", has_text="red sphere").inner_text()
    assert cells.count("seen") == 2


@needs_gradio
@pytest.mark.slow
def test_without_an_object_in_the_middle_the_page_says_what_to_expect(page):
    assert "middle" not in page.inner_text(".hint")
    source = page.eval_on_selector(".surface img", "image => image.src")
    for label in ("cyan cube", "red sphere"):
        page.click(f".palette [data-label='{label}']")
    finished(page, source)
    assert "No object is in the middle." in page.inner_text(".hint")
    page.click(".palette [data-label='green cylinder']")
    assert page.inner_text(".hint") == "An image needs at least one object."
    page.hover(".palette [data-label='blue cube']")
    page.mouse.down(button="right")
    page.hover(".surface img")
    assert page.locator(".handle").count() == 1


@needs_gradio
@pytest.mark.slow
def test_objects_are_added_by_a_click_and_moved_by_keys_and_kept(page):
    source = page.eval_on_selector(".surface img", "image => image.src")
    page.click(".palette [data-label='blue sphere']")
    finished(page, source)
    assert "blue sphere" in page.inner_text(".what")
    source = page.eval_on_selector(".surface img", "image => image.src")
    handle = page.locator(".handle[data-label='blue sphere']")
    place = handle.get_attribute("style")
    handle.press("ArrowLeft")
    finished(page, source)
    assert handle.get_attribute("style") != place
    page.click("text=Keep image")
    page.wait_for_selector(".kept img")
    page.wait_for_function(IN_VIEW)
    with page.expect_download() as download:
        page.click("text=Save GIF")
    with Image.open(download.value.path()) as film:
        assert film.n_frames == 9
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@needs_gradio
@pytest.mark.slow
def test_settings_by_keyboard_make_another_image_and_typed_ones_are_clamped(page):
    page.click("text=Settings: sampler")
    page.wait_for_timeout(1000)  # gradio sets the values once more when they are first shown
    number = page.get_by_label("number input for Steps")
    for typed, key, steps in (("2", "Enter", 2), ("1000", "Tab", 12)):
        number.fill(typed)
        number.press(key)
        page.wait_for_selector(f"#progress >> text=after step {steps} of {steps}", timeout=120_000)
    number.fill("0")
    page.get_by_label("range slider for Steps").press("ArrowRight")
    page.wait_for_selector("#progress >> text=after step 2 of 2", timeout=120_000)


@needs_gradio
@pytest.mark.slow
def test_the_page_names_the_weights_and_the_evaluators(page):
    assert page.inner_text("#intro small") == "Weights: pretrained"
    heading, *_ = page.locator("#findings tr").all_inner_texts()
    assert heading.split("\t")[1:] == ["first evaluator", "second evaluator"]
    assert "second evaluator counts up to three objects" in page.inner_text("#findings .legend")
