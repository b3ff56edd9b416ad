"""ICLEVRPipeline: what diffusers checks of its own pipelines, and that it samples as `sample`."""

import dataclasses
import json
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from iclevr_diffusion import ICLEVRPipeline
from iclevr_diffusion.data.holdout import Split
from iclevr_diffusion.data.labels import Vocabulary
from iclevr_diffusion.diffusion import iclevr_pipeline, io
from iclevr_diffusion.diffusion.io import load_model, load_pipeline, save_model
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import FlowSchedule, NoiseSchedule
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.models.dcgan import Generator
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.errors import UserError

PROMPTS = ["red cube, blue sphere", ["cyan cylinder"]]
HOSTILE = [
    {"_class_name": ["my_pipeline", "Evil"]},
    {"_class_name": "StableDiffusionPipeline"},
    {"unet": ["os", "system"]},
    {"unet": ["my_module", "UViT"]},
    {"scheduler": ["my_module", "DDPMScheduler"]},
    {"safety_checker": ["my_module", "Evil"]},
]


def perturbed(net):
    """As after some training: the output depends on all inputs."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return net.eval()


def tiny_model(schedule=None, prediction="sample", net=None):
    net = net or UViT(16, [8], [1], width=32, depth=1, head_dim=16, positions=True)
    sampling = {"steps": 3, "guidance_scale": 1.5, "label_drop": 0.1}
    schedule = schedule or NoiseSchedule(timesteps=20)
    return Model(perturbed(net), schedule, find_prediction(prediction), sampling)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tiny_model(), tmp_path_factory.mktemp("run") / "weights")


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = ICLEVRPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(pipe, labels="red cube", seed=0, **settings):
    settings = {"generator": seeded(seed), "output_type": "pt"} | settings
    return pipe(labels, **settings).images


def test_the_same_seed_gives_the_images_of_sample(pipe, folder, run, tmp_path):
    ours = images(pipe, "red cube, blue sphere", 7, num_images_per_prompt=3)
    theirs = load_pipeline(folder).generate(["red cube", "blue sphere"], count=3, seed=7)
    assert torch.equal(ours, theirs / 2 + 0.5)


def test_positions_are_those_of_sample(pipe, folder):
    pairs = [[0.0, -0.14], [0.5, 0.1]]
    one = images(pipe, "red cube, blue sphere", positions=pairs)
    both = images(pipe, ["red cube, blue sphere"] * 2, positions=[pairs, pairs])
    torch.testing.assert_close(one[0], both[0], atol=1e-3, rtol=0)  # kernels differ by batch size
    tensor = torch.zeros(1, 24, 2)
    tensor[0, [1, 10]] = torch.tensor(pairs)
    assert torch.equal(images(pipe, "red cube, blue sphere", positions=tensor), one)
    assert not torch.equal(images(pipe, "red cube, blue sphere"), one)


def test_a_used_generator_gives_other_images(pipe):
    generator = seeded()
    first, second = (images(pipe, generator=generator) for _ in range(2))
    assert torch.equal(first, images(pipe))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    unseeded = images(pipe, generator=None)
    torch.manual_seed(3)
    assert torch.equal(unseeded, images(pipe, generator=None))


def test_a_batch_equals_its_single_images(pipe):
    batch = images(pipe, PROMPTS, generator=[seeded(4), seeded(5)])
    singles = [images(pipe, [one], seed) for one, seed in zip(PROMPTS, (4, 5), strict=True)]
    assert torch.allclose(batch, torch.cat(singles), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_there_are_as_many_images_of_each_prompt_as_asked(pipe, count):
    result = images(pipe, PROMPTS, num_images_per_prompt=count)
    assert result.shape == (2 * count, 3, 16, 16)
    again = images(pipe, PROMPTS[:1], num_images_per_prompt=count)
    assert torch.allclose(result[:count], again, atol=1e-5)


def test_output_types_agree(pipe):
    pil, array, tensor = (images(pipe, output_type=name) for name in ("pil", "np", "pt"))
    assert isinstance(pil[0], Image.Image)
    assert array.shape == (1, 16, 16, 3)
    assert np.array_equal(array[0].transpose(2, 0, 1), tensor[0].numpy())
    assert np.abs(np.asarray(pil[0]) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6
    (from_tuple,) = pipe("red cube", generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(from_tuple, tensor)


def test_saved_and_loaded_it_gives_the_same_images(pipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):  # the second one replaces the first
        pipe.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 6
    loaded = ICLEVRPipeline.from_pretrained(tmp_path)
    assert torch.equal(images(loaded), images(pipe))
    assert loaded.config.sampling == pipe.config.sampling
    with pytest.raises(ValueError, match="saved as safetensors"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="variant must be None"):
        pipe.save_pretrained(tmp_path, variant="fp16")


def test_saved_over_other_weights_none_of_their_files_is_left(pipe, tmp_path):
    vocabulary = Vocabulary([f"label {number}" for number in range(24)])
    split = Split({"kind": "pairs"}, {"held_out": [["label 0"]], "seen": []})
    other = GAN(Generator(4, [8, 8]), vocabulary=vocabulary, split=split)
    save_model(other, tmp_path / "weights")
    pipe.save_pretrained(tmp_path / "weights")
    saved = load_model(tmp_path / "weights")
    assert (saved.vocabulary, saved.split) == (pipe.vocabulary, None)
    assert isinstance(saved, Model)
    assert not list((tmp_path / "weights").glob(".*"))


def test_earlier_weights_survive_a_save_that_breaks_off(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)
    moves = [*[DEFAULT] * 7, OSError("cut")]
    monkeypatch.setattr(io, "move", Mock(wraps=io.move, side_effect=moves))
    with pytest.raises(OSError, match="cut"):
        pipe.save_pretrained(tmp_path)
    (old,) = tmp_path.glob(".weights.*.old")
    assert isinstance(load_model(old), Model)


def test_saved_again_it_keeps_the_held_out_label_sets(tmp_path):
    split = Split({"kind": "pairs"}, {"held_out": [["red cube", "blue sphere"]], "seen": []})
    model = dataclasses.replace(tiny_model(), split=split)
    pipe = ICLEVRPipeline.from_pretrained(save_model(model, tmp_path / "weights"))
    pipe.save_pretrained(tmp_path / "again")
    assert load_model(tmp_path / "again").split == pipe.split == split
    assert ICLEVRPipeline.from_pipe(pipe).split == split


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("network", ["uvit", "detail"])
def test_it_moves_to_a_dtype_and_back(tmp_path, network, dtype):
    net = DetailNet(16, [8, 8], [1, 1], timesteps=20, positions=True)
    net.noise_to_signal.copy_(NoiseSchedule(timesteps=20).noise_to_signal())
    folder = save_model(tiny_model(net=net if network == "detail" else None), tmp_path / "weights")
    half = ICLEVRPipeline.from_pretrained(folder, dtype=dtype)
    assert half.dtype == half.unet.dtype == dtype
    rounded = images(half)
    full = images(ICLEVRPipeline.from_pretrained(folder))
    assert rounded.dtype == full.dtype == torch.float32
    assert 0 < (rounded - full).abs().max() < 0.15
    half.save_pretrained(tmp_path / "half")
    again = images(ICLEVRPipeline.from_pretrained(tmp_path / "half", dtype=dtype))
    assert torch.equal(again, rounded)
    assert images(half.to(torch.float32)).isfinite().all()


def test_weights_beyond_the_range_of_float16_are_refused(tmp_path):
    schedule = NoiseSchedule(timesteps=4000)
    net = DetailNet(16, [8, 8], [1, 1], timesteps=4000, positions=True)
    net.noise_to_signal.copy_(schedule.noise_to_signal())  # 81,165 at the last timestep
    model = tiny_model(schedule, net=net)
    with pytest.raises(UserError, match="these weights exceed the range of float16; use float32"):
        save_model(model, tmp_path / "half", torch.float16)
    assert not any(tmp_path.iterdir())
    folder = save_model(model, tmp_path / "weights")
    with pytest.raises(UserError, match="these weights exceed the range of float16; use float32"):
        ICLEVRPipeline.from_pretrained(folder, dtype=torch.float16)


def test_it_moves_to_a_device(folder):
    pipe = ICLEVRPipeline.from_pretrained(folder)
    assert pipe.device.type == "cpu"
    assert {parameter.device.type for parameter in pipe.to("meta").unet.parameters()} == {"meta"}


def test_components_make_another_pipeline(pipe):
    assert {*pipe.components} == {"unet", "scheduler", "generator"}
    other = ICLEVRPipeline(**pipe.components, sampling=pipe.config.sampling)
    assert torch.equal(images(other), images(pipe))
    pipe.enable_attention_slicing()  # no network here has slices: attention is over few tokens
    assert torch.equal(images(other), images(pipe))


def test_from_pipe_shares_the_network_and_takes_other_sampling_settings(pipe):
    same = ICLEVRPipeline.from_pipe(pipe)
    assert same.unet is pipe.unet
    assert torch.equal(images(same), images(pipe))
    other = ICLEVRPipeline.from_pipe(pipe, sampling={"sampler": "ddim", "steps": 2})
    assert other.config.sampling == {"sampler": "ddim", "steps": 2}


def test_a_callback_sees_each_step_and_may_change_the_latents(pipe):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((step, timestep, {name: value.shape for name, value in tensors.items()}))

    names = ("latents", "pred_original_sample")
    unchanged = images(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert torch.equal(unchanged, images(pipe))
    assert [step for step, *_ in seen] == [0, 1, 2]
    assert seen[0][1:] == (19, dict.fromkeys(names, (1, 3, 16, 16)))

    def blank(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert (images(pipe, callback_on_step_end=blank) == 0.5).all()


def test_a_callback_may_stop_and_the_next_call_is_whole(pipe):
    latents = []

    def stop(pipe, step, timestep, tensors):
        latents.append(tensors["latents"])
        pipe._interrupt = step == 1

    stopped = images(pipe, callback_on_step_end=stop)
    assert len(latents) == 2
    assert torch.equal(stopped, latents[-1].clamp(-1, 1) / 2 + 0.5)
    assert torch.equal(images(pipe), images(pipe))
    assert not pipe.interrupt


def test_a_callback_that_stops_may_also_change_the_latents(pipe):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert (images(pipe, callback_on_step_end=stop) == 0.5).all()


def test_later_batches_of_a_stopped_call_end_after_a_step(pipe):
    seen = []

    def stop(pipe, step, timestep, tensors):
        seen.append(step)
        pipe._interrupt = pipe.interrupt or step == 1

    settings = {"num_images_per_prompt": 2, "batch_size": 1}
    assert images(pipe, callback_on_step_end=stop, **settings).shape == (2, 3, 16, 16)
    assert seen == [0, 1, 0]


def test_steps_and_guidance_are_settings_of_a_call(pipe, folder):
    other = load_pipeline(folder, steps=5, guidance_scale=1.4, guidance_rescale=0.5).generate(
        ["red cube"]
    )
    ours = images(pipe, num_inference_steps=5, guidance_scale=1.4, guidance_rescale=0.5)
    assert torch.equal(ours, other / 2 + 0.5)
    ddim = ICLEVRPipeline.from_pretrained(folder, sampling={"sampler": "ddim", "steps": 4})
    theirs = load_pipeline(folder, sampler="ddim", steps=4).generate(["red cube"])
    assert torch.equal(images(ddim), theirs / 2 + 0.5)


def test_an_unknown_sampling_setting_is_refused(folder):
    with pytest.raises(ValueError, match=r"guidance_scael; did you mean guidance_sc"):
        load_pipeline(folder, guidance_scael=3.0)
    with pytest.raises(ValueError, match="no sampling setting is named num_steps"):
        ICLEVRPipeline.from_pretrained(folder, sampling={"num_steps": 50})
    with pytest.raises(ValueError, match=r"sampling must be a dict .*, got 'ddim'"):
        ICLEVRPipeline.from_pretrained(folder, sampling="ddim")


def test_the_progress_bar_counts_steps(folder, capsys):
    ICLEVRPipeline.from_pretrained(folder)("red cube")
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_an_unusable_dtype_is_refused(name):
    with pytest.raises(ValueError, match=r"dtype must be one of torch\.float32"):
        ICLEVRPipeline.from_pretrained(**{name: torch.int8})


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"labels": "red ball"}, "unknown label 'red ball'"),
        ({"labels": []}, "labels is empty"),
        ({"generator": [seeded()] * 2}, "generator must be one, or a list of 1; got a list of 2"),
        ({"output_type": "latent"}, "output_type must be one of pil, np, pt"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be 1 or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "is not among latents"),
        ({"positions": [[0, 0], [0, 0]]}, "1 labels need as many pairs"),
        ({"positions": torch.zeros(2, 2)}, r"positions must be \(1, 24, 2\) as a tensor"),
        ({"positions": [["a", 0]]}, "red cube needs two numbers"),
        ({"positions": [0]}, "red cube needs two numbers"),
        ({"labels": 3}, "labels is of type int"),
        ({"labels": [["red cube", 3]]}, "give a string or a list of names for each prompt"),
        ({"generator": 0}, "generator must be a torch.Generator"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "must be a list, got 'latents'"),
        ({"callback_on_step_end": lambda *_: 3}, "must return a dict or None, got int"),
        ({"callback_on_step_end": lambda *_: {"latents": torch.zeros(1)}}, "keep the shape"),
        ({"num_inference_steps": 99}, "more than the schedule's timesteps"),
    ],
)
def test_wrong_arguments_are_refused_with_a_reason(pipe, settings, line):
    with pytest.raises((ValueError, UserError), match=line):
        pipe(**{"labels": "red cube"} | settings)


def other_vocabulary():
    names = [f"{color} {shape}" for shape in ("cup", "bowl") for color in ("x", "y")]
    model = tiny_model(net=UViT(16, [8], [1], 32, 1, 16, 2, num_labels=4, num_colors=2))
    return dataclasses.replace(model, vocabulary=Vocabulary(names)), "y cup"


def gan():
    return GAN(perturbed(Generator(latent=4, channels=[8, 8]))), "red cube"


def test_sampling_settings_of_a_gan_are_refused(tmp_path):
    folder = save_model(gan()[0], tmp_path / "weights")
    with pytest.raises(ValueError, match="leave out sampler and guidance"):
        ICLEVRPipeline.from_pretrained(folder, sampling={"steps": 50})


@pytest.mark.parametrize(
    "make",
    [
        lambda: (tiny_model(), "red cube"),
        lambda: (tiny_model(FlowSchedule(20), "velocity"), "red cube"),
        other_vocabulary,
        gan,
    ],
    ids=["diffusion", "flow", "other labels", "gan"],
)
def test_diffusers_loads_it_as_a_custom_pipeline(tmp_path, monkeypatch, make):
    model, label = make()
    folder = save_model(model, tmp_path / "weights")
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    loaded = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=iclevr_pipeline.__file__, trust_remote_code=True
    )
    assert type(loaded).__name__ == "ICLEVRPipeline"
    expected = load_pipeline(folder).generate([label], seed=2) / 2 + 0.5
    assert torch.equal(images(loaded, label, 2), expected)
    assert torch.equal(images(ICLEVRPipeline.from_pretrained(folder), label, 2), expected)


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_an_index_that_names_other_code_is_refused(folder, tmp_path, change):
    (tmp_path / "weights").symlink_to(folder)
    pipe = ICLEVRPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "copy")
    index = tmp_path / "copy" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    for load in (load_model, ICLEVRPipeline.from_pretrained):
        with pytest.raises(UserError, match=r"model_index.json: \w+ (must be|names code)"):
            load(tmp_path / "copy")


def test_a_network_with_headings_samples_them_for_given_positions(tmp_path):
    net = DetailNet(16, [8, 8], [1, 1], timesteps=20, positions=True, headings=True)
    net.noise_to_signal.copy_(NoiseSchedule(timesteps=20).noise_to_signal())
    net.layout.turning[:8] = True
    torch.nn.init.normal_(net.conv_out.weight)
    pipe = ICLEVRPipeline.from_pretrained(save_model(tiny_model(net=net), tmp_path / "weights"))
    assert pipe.unet.layout.turning.sum() == 8

    def image(labels, seed):
        return pipe(
            labels,
            positions=[[0.0, 0.0]],
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images

    assert torch.equal(image("red cube", 0), image("red cube", 0))
    assert not torch.equal(image("red cube", 0), image("red cube", 1))
