"""What the app answers its visitors, without a browser and without gradio."""

import base64
import dataclasses
import io
import threading
import time

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from helpers import PixelReader
from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
from iclevr_diffusion.demo import generation
from iclevr_diffusion.demo.findings import Findings, Row, all_evaluators, find
from iclevr_diffusion.demo.generation import floor_bounds, generate, sample_scene, snap_scene
from iclevr_diffusion.demo.handlers import Handlers
from iclevr_diffusion.demo.requests import Scene
from iclevr_diffusion.demo.visit import Visit
from iclevr_diffusion.demo.visitor_limits import Limits
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.models.dcgan import Generator
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.pixels import to_uint8

SCENE = Scene(("red cube", "blue sphere"), ((0.5, 0.25), (-0.5, 0)))


@pytest.fixture(scope="module")
def model():
    """A tiny untrained network that takes positions."""
    torch.manual_seed(0)
    net = UViT(16, [8], [1], width=32, depth=1, head_dim=16, positions=True).eval()
    return Model(net, NoiseSchedule(timesteps=20), find_prediction("sample"), {"steps": 4})


@pytest.fixture
def handlers(model):
    return Handlers(model, [PixelReader()], Limits(kept=2))


def last(iterator):
    *_, result = iterator
    return result


def generated(handlers, visit, scene=SCENE, **settings):
    settings = dataclasses.replace(handlers.first_settings(), **settings)
    return list(handlers.generate(scene.to_value(), settings, visit))


def test_an_image_is_that_of_the_pipeline_and_each_step_is_shown(model):
    pipeline = model.pipeline()
    steps = generate(pipeline, SCENE, seed=3, seconds=60)
    numbers = []
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            image = end.value
            break
        numbers.append(step.number)
        assert step.x0.dtype == step.x_t.dtype == torch.uint8
    assert numbers == [0, 1, 2, 3]
    positions = SCENE.tensor(ICLEVR_LABELS)
    assert torch.equal(image, pipeline.generate(SCENE.label_set, 1, 3, positions))


def test_when_the_app_stops_sampling_has_ended(model, monkeypatch):
    monkeypatch.setattr(generation, "_stopping", threading.Event())
    seconds = 0.02
    monkeypatch.setattr(generation, "to_uint8", lambda x: time.sleep(seconds) or to_uint8(x))
    pipeline = model.pipeline(steps=20)
    steps = generate(pipeline, SCENE, seed=0, seconds=60)
    next(steps)
    before = threading.active_count()
    generation.stop()
    assert threading.active_count() < before
    with pytest.raises(UserError, match="The app was stopped"):
        last(steps)
    with pytest.raises(UserError, match="The app was stopped"):
        next(generate(pipeline, SCENE, seed=0, seconds=60))


def test_sampling_ends_when_its_visitor_has_left_or_its_time_is_over(model):
    pipeline = model.pipeline(steps=20)
    before = threading.active_count()
    steps = generate(pipeline, SCENE, seed=0, seconds=60)
    next(steps)
    steps.close()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
    with pytest.raises(UserError, match="takes longer than 0 seconds: choose fewer steps"):
        last(generate(pipeline, SCENE, seed=0, seconds=0))


def test_positions_are_sampled_or_those_of_training_images(model):
    pipeline = model.pipeline()
    scene = sample_scene(pipeline, Scene(SCENE.label_set, None), seed=0)
    assert scene.label_set == SCENE.label_set
    assert snap_scene(pipeline, scene) == scene
    assert snap_scene(pipeline, SCENE) != SCENE
    assert floor_bounds(pipeline) == [-1, -1, 1, 1]


def test_sampled_scenes_of_a_network_with_headings_have_pairs():
    pipeline = load_model("pretrained").pipeline(steps=2)
    scene = sample_scene(pipeline, Scene(SCENE.label_set, None), seed=0)
    assert [len(position) for position in scene.positions] == [2, 2]
    snapped = snap_scene(pipeline, scene)
    assert last(generate(pipeline, snapped, seed=0, seconds=60)) is not None


def test_a_request_shows_each_step_and_then_what_is_seen(handlers):
    visit = Visit()
    shown = generated(handlers, visit)
    assert [part.findings is None for part in shown] == [True] * 4 + [False]
    assert 'alt="red cube, blue sphere: estimate, step 1"' in shown[0].progress
    assert 'alt="red cube, blue sphere"' in shown[-1].progress
    assert shown[0].progress != shown[1].progress
    assert "the pixel reader" in shown[-1].findings
    assert visit.last.caption == "red cube, blue sphere; seed 0"


def test_the_image_kept_is_that_of_sample_with_its_final_noise(model):
    noise = {"final_noise": True, "final_covariance": (0.01 * torch.eye(3)).tolist()}
    model = dataclasses.replace(model, sampling=model.sampling | noise)
    visit = Visit()
    shown = generated(Handlers(model, [PixelReader()], Limits()), visit, seed=7)
    assert visit.last.source in shown[-1].progress
    content = base64.b64decode(visit.last.source.partition(",")[2])
    kept = pil_to_tensor(Image.open(io.BytesIO(content)))
    pipeline = model.pipeline()
    positions = snap_scene(pipeline, SCENE).tensor(model.vocabulary)
    assert torch.equal(kept, to_uint8(pipeline.generate(SCENE.label_set, 1, 7, positions))[0])


def test_a_stored_guidance_scale_beyond_the_slider_is_reduced(model):
    strong = dataclasses.replace(model, sampling=model.sampling | {"guidance_scale": 12.0})
    assert Handlers(strong, [PixelReader()], Limits()).first_settings().guidance_scale == 10


def test_the_command_shown_generates_the_same_image(handlers):
    text = generated(handlers, Visit(), seed=5, steps=2)[-1].findings
    command = text.partition("<code>")[2].partition("</code>")[0]
    assert "labels=&#39;red cube, blue sphere&#39;" in command
    assert "sampler.steps=2" in command
    assert command.endswith("n=1 seed=5")
    assert "sampler.name" not in command
    assert "weights=" not in command


@pytest.mark.parametrize(("weights", "shown"), [("pretrained", False), ("outputs/run", True)])
def test_the_command_names_weights_other_than_the_default(model, weights, shown):
    handlers = Handlers(model, [PixelReader()], Limits(), weights)
    text = generated(handlers, Visit())[-1].findings
    assert (f"weights={weights}" in text) == shown


def test_two_visitors_at_once_do_not_mix(handlers):
    first, second = Visit(), Visit()
    settings = handlers.first_settings()
    other = Scene(("cyan cube",), ((0, 0),))
    a = handlers.generate(SCENE.to_value(), settings, first)
    b = handlers.generate(other.to_value(), settings, second)
    for shown_a, shown_b in zip(a, b, strict=True):
        assert "red cube" in shown_a.progress
        assert "cyan" not in shown_a.progress
        assert "red cube" not in shown_b.progress
    assert first.last.caption.startswith("red cube, blue sphere")
    assert second.last.caption.startswith("cyan cube")
    assert "cyan" not in handlers.keep(first)
    alone = Visit()
    generated(handlers, alone)
    assert alone.last == first.last


def test_a_gallery_keeps_each_image_once_and_so_many(handlers):
    visit = Visit()
    assert handlers.keep(visit).strip() == ""
    for seed in (0, 0, 1, 2):
        generated(handlers, visit, seed=seed)
        gallery = handlers.keep(visit)
        gallery = handlers.keep(visit)
    assert [kept.name for kept in visit.kept] == [f"red-cube_blue-sphere_{n}" for n in (1, 2)]
    assert gallery.count("<figure>") == 2


def test_while_an_image_is_sampled_the_one_before_can_be_kept(handlers):
    visit = Visit()
    generated(handlers, visit)
    sampling = handlers.generate(SCENE.to_value(), handlers.first_settings(), visit)
    next(sampling)
    assert "<figure>" in handlers.keep(visit)
    list(sampling)
    assert len(visit.kept) == 1


def test_the_strip_and_the_animation_are_links_to_their_content(handlers):
    visit = Visit()
    assert handlers.strip(visit) == handlers.animation(visit) == ""
    generated(handlers, visit)
    assert 'download="red-cube_blue-sphere_0_strip.png"' in handlers.strip(visit)
    assert 'href="data:image/gif;base64,' in handlers.animation(visit)


def test_labels_of_weights_are_never_markup(model):
    name = "<img src=x onerror=alert(1)>"
    sizes = {"width": 32, "depth": 1, "head_dim": 16, "object_tokens": 1, "num_labels": 1}
    net = UViT(16, [8], [1], positions=True, **sizes).eval()
    parts = NoiseSchedule(timesteps=20), find_prediction("sample"), {"steps": 2}
    handlers = Handlers(Model(net, *parts, vocabulary=Vocabulary([name])), [], Limits())
    visit = Visit()
    shown = generated(handlers, visit, Scene((name,), ((0, 0),)))[-1]
    html = shown.progress + shown.findings + handlers.keep(visit) + handlers.animation(visit)
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html
    assert "/" not in visit.last.name
    assert "No evaluator" in shown.findings


def test_weights_without_positions_choose_them_themselves(weights_folder):
    handlers = Handlers(load_model(weights_folder), [], Limits())
    assert not handlers.takes_positions
    assert handlers.first_scene().positions is None
    assert generated(handlers, Visit())[-1].findings is not None


def test_a_generator_makes_its_image_in_one_step():
    handlers = Handlers(GAN(Generator(latent=4, channels=[8, 8]).eval()), [], Limits())
    shown = generated(handlers, Visit())
    assert len(shown) == 2
    assert "after step 1 of 1" in shown[-1].progress
    assert "sampler" not in shown[-1].findings


def test_settings_that_the_weights_refuse_are_refused_in_a_line(handlers):
    with pytest.raises(UserError, match="do not support this combination"):
        generated(handlers, Visit(), steps=50)  # of 20 timesteps


class Says(Evaluator):
    """An evaluator with given scores."""

    name = "iclevr-diffusion's fake (sha256 0)"
    num_features = max_count = 1

    def __init__(self, labels, unclear):
        super().__init__()
        scores, colors = torch.zeros(1, 24), torch.zeros(1, 8)
        scores[0, [ICLEVR_LABELS.index[name] for name in labels]] = 0.75
        colors[0, unclear] = 0.75
        self.output = ClassifierOutput(scores, torch.tensor([2]), scores, colors)

    def classify(self, images):
        return self.output


def test_what_is_seen_is_told_label_by_label():
    requested = ("gray cube", "red cube", "blue sphere")
    evaluators = [Says(["gray cube", "cyan cube"], [1, 7]), Says(["red cube"], [])]
    found = find(torch.zeros(1, 3, 64, 64), requested, evaluators)
    assert found == Findings(
        ("fake", "fake"),
        (
            Row("gray cube", ("seen", "missing"), (0.75, 0.0)),
            Row("red cube", ("unclear", "seen"), (0.0, 0.75)),
            Row("blue sphere", ("missing", "missing"), (0.0, 0.0)),
            Row("cyan cube", ("not requested", "–"), (0.75, 0.0)),
            Row("yellow, no clear shape", ("not requested", "–"), (0.75, 0.0)),
        ),
        (2, 2),
    )


def test_evaluators_of_other_labels_are_left_out(caplog):
    assert all_evaluators(PixelReader(), Vocabulary(["cup"])) == []
    assert "does not classify the labels" in caplog.text
    assert len(all_evaluators(PixelReader(), ICLEVR_LABELS)) == 2
