"""Code for accelerators, checked without one.

Fake tensors have a shape, a type and a device, but no numbers. An operation between "cuda" and a
tensor that was left on the CPU fails, as it would on a GPU. Backward passes, autocast to CUDA, and
branches that depend on numbers cannot be run so.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from helpers import SIZE, slow, tiny_gan
from iclevr_diffusion.data.crops import Crops
from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.data.types import Batch
from iclevr_diffusion.diffusion.composed_guidance import ComposedGuidance
from iclevr_diffusion.diffusion.final_noise import add_noise, measure_covariance, noise_factor
from iclevr_diffusion.diffusion.guidance import Denoiser, Guidance
from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.prediction import PREDICTIONS, find_prediction
from iclevr_diffusion.diffusion.samplers import SAMPLERS, SPACINGS, Sampler, sample
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.evaluation.classifier import load_evaluator, load_second_evaluator
from iclevr_diffusion.evaluation.classifier_networks import AttentionNet, ResidualNet
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.models.unet import ConditionalUNet
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.training import diffusion as diffusion_module
from iclevr_diffusion.training.callbacks.ema import EMA, averaged_tensors
from iclevr_diffusion.training.callbacks.posthoc_ema import PosthocEMA
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.evaluator import EvaluatorModule
from iclevr_diffusion.training.gan import bce
from iclevr_diffusion.training.optimizer import OptimizerSettings


def can_be_faked() -> bool:
    """Older torch, built for CUDA, looks for a driver even then."""
    try:
        with FakeTensorMode() as mode:
            nn.Parameter(mode.from_tensor(torch.zeros(1)).to("cuda"))
    except RuntimeError:
        return False
    return True


pytestmark = pytest.mark.skipif(not can_be_faked(), reason="this torch looks for a CUDA driver")
TIMESTEPS = 50
COUNT = 3  # images
GPU = torch.device("cuda")
SAMPLE = find_prediction("sample")
LEVELS = {"channels": [8, 16], "blocks": [1, 1]}
COARSE = {**LEVELS, "width": 32, "depth": 1, "head_dim": 16, "positions": True}


def unet(**settings):
    shape = {"image_size": 16, "block_out_channels": [8, 16], "attention": [False, True]}
    return ConditionalUNet(**{**shape, "layers_per_block": 1, "norm_groups": 4, **settings})


NETS = {
    "unet": unet,
    "unet of concatenated labels": lambda: unet(labels="concat", image_size=24),
    "small": lambda: unet(patch_size=4, scale_shift=True, image_size=32),
    "unet4": lambda: unet(block_out_channels=[8, 8, 8, 16], attention=[False, False, False, True]),
    "uvit": lambda: UViT(image_size=16, **{**COARSE, "positions": False}),
    "uvit with positions": lambda: UViT(image_size=16, **COARSE),
    "detail": lambda: DetailNet(image_size=16, **LEVELS, timesteps=TIMESTEPS, positions=True),
    "detail with headings": lambda: DetailNet(
        image_size=16, **LEVELS, timesteps=TIMESTEPS, positions=True, headings=True
    ),
    "coarse expert": lambda: NoiseExperts(COARSE, {**LEVELS, "timesteps": TIMESTEPS}, 16).coarse,
}

FAST_NETS = ("unet", "uvit with positions", "detail")


def moved(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A module as ``module.to("cuda")`` leaves it: parameters and buffers there, nothing else."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fake = mode.from_tensor(weight.detach()).to(GPU)
                part._parameters[name] = nn.Parameter(fake, weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer).to(GPU)
    return module


def size_of(net):
    return net.config["image_size"]


def inputs(net):
    """Noisy images, timesteps and conditions on the GPU."""
    x_t = torch.zeros(COUNT, 3, size_of(net), size_of(net), device=GPU)
    labels = torch.zeros(COUNT, NUM_LABELS, device=GPU)
    layout = getattr(net, "layout", None)
    dimensions = layout.dimensions if layout is not None else 2
    positions = torch.zeros(COUNT, NUM_LABELS, dimensions, device=GPU)
    return x_t, torch.zeros(COUNT, dtype=torch.long, device=GPU), labels, positions


def batch(size, dimensions=0):
    images = torch.zeros(COUNT, 3, size, size, dtype=torch.uint8, device=GPU)
    where = torch.zeros(COUNT, NUM_LABELS, dimensions, device=GPU) if dimensions else None
    labels = torch.zeros(COUNT, NUM_LABELS, device=GPU)
    return Batch(images, labels, torch.arange(COUNT, device=GPU), where)


def test_a_tensor_that_is_left_on_the_cpu_is_found():
    net, left = unet(), torch.ones(3, 1, 1)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output = moved(net, mode)(*inputs(net))
        with pytest.raises(Exception, match=r"same device|different devices"):
            output * left


@pytest.mark.parametrize("name", [*FAST_NETS, *slow(*sorted({*NETS} - {*FAST_NETS}))])
def test_networks(name):
    net = NETS[name]()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(net, mode)
        output = net(*inputs(net))
        assert output.device.type == "cuda"
        assert output.shape == inputs(net)[0].shape


def experts():
    return NoiseExperts(COARSE, {**LEVELS, "timesteps": TIMESTEPS}, 16)


@pytest.mark.parametrize("is_low", [True, False])
def test_both_experts_behind_their_switch(is_low, monkeypatch):
    net = experts()
    # Which expert is called depends on numbers, which fake tensors do not have.
    monkeypatch.setattr(FakeTensor, "__bool__", lambda self: is_low)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(net, mode)
        assert net(*inputs(net)).device.type == "cuda"


def test_expert_for_low_noise_on_crops():
    net = experts()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(net, mode)
        _, timesteps, *condition = inputs(net)
        crops = torch.zeros(COUNT, 3, 8, 8, device=GPU)
        corner = torch.zeros(COUNT, 2, dtype=torch.long, device=GPU)
        assert net(crops, timesteps, *condition, corner).device.type == "cuda"


LOSSES = [
    {},
    {"min_snr_gamma": 5.0},
    {"data_std": 0.1},
    {"data_std": 0.1, "max_weight": None},
    {"timestep_shift": 0.5},
    {"max_noise": 2.0, "noise_mean": -1.0, "noise_std": 1.0},
]


@pytest.mark.parametrize(
    ("prediction", "settings"),
    [  # each prediction, and each loss; the other pairs are slow
        pytest.param(
            prediction, loss, marks=() if prediction == "sample" or not loss else pytest.mark.slow
        )
        for prediction in PREDICTIONS
        for loss in LOSSES
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value) or "plain",
)
def test_training_and_validation_losses(prediction, settings, monkeypatch):
    # There is no generator without a GPU; which tensors meet does not depend on it.
    monkeypatch.setattr(diffusion_module, "keyed_generator", lambda *key, device: None)
    objective = Objective(NoiseSchedule(timesteps=TIMESTEPS), prediction, **settings)
    module = DiffusionModule(unet(), objective, OptimizerSettings(), label_drop=0.1)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(module, mode)
        assert module.training_step(batch(16), 0).device.type == "cuda"
        x0 = torch.zeros(COUNT, 3, 16, 16, device=GPU)
        draw = module.noise_for_frames(x0, [0, 1, 2])
        assert {tensor.device.type for tensor in draw} == {"cuda"}
        x_t = module.schedule.add_noise(x0, draw.noise, draw.timesteps)
        error = objective.x0_error(x_t, x0, x_t, draw.timesteps)
        assert error.device.type == "cuda"


@pytest.mark.parametrize("name", ["detail", *slow("detail with headings")])
def test_training_on_crops(name, monkeypatch):
    monkeypatch.setattr(diffusion_module, "keyed_generator", lambda *key, device: None)
    schedule = NoiseSchedule(timesteps=TIMESTEPS)
    crops = Crops(8, 0.5)
    module = DiffusionModule(
        NETS[name](), Objective(schedule, "sample"), OptimizerSettings(), crops=crops
    )
    dimensions = module.net.layout.dimensions
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(module, mode)
        assert module.training_step(batch(16, dimensions), 0).device.type == "cuda"


@pytest.mark.parametrize(
    ("name", "spacing"),
    [  # each sampler, and each spacing; the other pairs are slow
        pytest.param(
            name, spacing, marks=() if spacing == "trailing" or name == "ddim" else pytest.mark.slow
        )
        for name in SAMPLERS
        for spacing in SPACINGS
    ],
)
def test_samplers_with_guidance(name, spacing, monkeypatch):
    schedule, net = NoiseSchedule(timesteps=TIMESTEPS), unet()
    sampler = Sampler(name, 5, spacing)
    denoiser = Denoiser(net, schedule, find_prediction("v_prediction"), Guidance(2.0))
    # Two parts look at numbers, which fake tensors do not have.
    monkeypatch.setattr(Guidance, "check_labels", lambda self, labels: None)
    scheduler = sampler.scheduler(schedule)
    timesteps = scheduler.timesteps.tolist()
    if name == "ddpm":
        after = dict(zip(timesteps, [*timesteps[1:], -1], strict=True))
        scheduler.previous_timestep = after.get
    else:
        scheduler.set_begin_index(0)
    monkeypatch.setattr(type(scheduler.timesteps), "tolist", lambda self: timesteps)
    monkeypatch.setattr(sampler, "scheduler", lambda schedule: scheduler)
    generators = [torch.Generator() for _ in range(COUNT)]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(net, mode)
        moved(schedule, mode)
        labels = torch.zeros(COUNT, NUM_LABELS, device=GPU)
        images = sample(denoiser, labels, sampler, generators, (3, 16, 16))
        assert images.device.type == "cuda"


def device_of_estimate(net, denoiser):
    """The device of an estimate by a network and a schedule that were moved to a fake GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(net, mode)
        moved(denoiser.schedule, mode)
        x_t, _, labels, positions = inputs(net)
        estimate = denoiser(x_t, 7, labels, positions if net.takes_positions else None)
        return estimate.device.type


@pytest.mark.parametrize("name", ["unet", "detail with headings", *slow("uvit with positions")])
def test_rescaled_guidance(name):
    net, guidance = NETS[name](), Guidance(2.0, rescale=1.0)
    denoiser = Denoiser(net, NoiseSchedule(timesteps=TIMESTEPS), SAMPLE, guidance)
    assert device_of_estimate(net, denoiser) == "cuda"


@pytest.mark.parametrize(
    ("name", "rescale"), [("unet", 0.0), ("detail with headings", 1.0), *slow(("uvit", 1.0))]
)
def test_composed_guidance(name, rescale, monkeypatch):
    net, guidance = NETS[name](), ComposedGuidance(2.0, rescale=rescale)
    denoiser = Denoiser(net, NoiseSchedule(timesteps=TIMESTEPS), SAMPLE, guidance)
    # How many labels an image has depends on numbers: here, each of them has one.
    every = torch.arange(COUNT)
    monkeypatch.setattr(FakeTensor, "nonzero", lambda self, as_tuple: (every.to(self.device),) * 2)
    monkeypatch.setattr(FakeTensor, "__int__", lambda self: 1)
    monkeypatch.setattr(
        ComposedGuidance, "_needs_unconditional", lambda self, labels, _: every.to(labels.device)
    )
    assert device_of_estimate(net, denoiser) == "cuda"


def test_final_noise_and_its_measurement(monkeypatch):
    net = NETS["detail"]()
    denoiser = Denoiser(net, NoiseSchedule(timesteps=TIMESTEPS), SAMPLE)
    factor = noise_factor([[0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]])
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: str(self.device))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(net, mode)
        moved(denoiser.schedule, mode)
        x_t, _, labels, positions = inputs(net)
        generators = [torch.Generator() for _ in range(COUNT)]
        assert add_noise(x_t, factor, generators).device.type == "cuda"
        frames = batch(16).images
        assert measure_covariance(denoiser, 7, frames, labels, positions) == "cpu"


@pytest.mark.parametrize("name", ["adamw", "adam", "muon"])
def test_optimizers(name):
    settings = OptimizerSettings(name, matrix_lr=1e-3 if name == "muon" else None)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        net = moved(NETS["uvit"](), mode)
        optimizer = settings.build(net)
        for weight in net.parameters():
            weight.grad = torch.zeros_like(weight)
        for _ in range(2):
            optimizer.step()
        states = [state.values() for state in optimizer.state.values()]
        moments = [value for values in states for value in values if value.ndim]
        assert {value.device.type for value in moments} == {"cuda"}


def test_averages_of_several_lengths(tmp_path):
    net, averages = unet(), PosthocEMA(tmp_path)
    resumed = [dict(averaged_tensors(net)) for _ in averages.lengths]  # as checkpoints have them
    averages.load_state_dict({"updates": 5, "averages": resumed})
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(net, mode)
        averages.on_fit_start(
            SimpleNamespace(is_global_zero=False), SimpleNamespace(net=net, device=GPU)
        )
        averages.update(net)
        assert {v.device.type for a in averages.averages for v in a.values()} == {"cuda"}


@pytest.mark.parametrize("name", ["unet", *slow("uvit with positions", "detail")])
def test_average_and_clipping(name):
    net, ema = NETS[name](), EMA(0.9)
    ema.net = NETS[name]()
    module = DiffusionModule(net, Objective(NoiseSchedule(), "sample"), OptimizerSettings())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(module, mode)
        moved(ema.net, mode)
        ema.update(net)
        for weight in net.parameters():
            weight.grad = torch.zeros_like(weight)
        assert module.clip(net).device.type == "cuda"
        assert {w.device.type for n in (net, ema.net) for w in n.parameters()} == {"cuda"}


def test_parts_of_a_gan():
    module = tiny_gan()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(module, mode)
        labels = torch.zeros(COUNT, NUM_LABELS, device=GPU)
        drawn = module.net(torch.zeros(COUNT, module.net.latent, device=GPU), labels)
        assert drawn.shape == (COUNT, 3, SIZE, SIZE)
        assert bce(module.discriminator(drawn, labels), 1.0).device.type == "cuda"


@pytest.mark.parametrize("kind", [ResidualNet, *slow(AttentionNet)])
def test_training_of_evaluators(kind):
    module = EvaluatorModule(kind(), OptimizerSettings())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(module, mode)
        images = torch.zeros(COUNT, 3, 64, 64, device=GPU)
        loss = module.loss(images, torch.zeros(COUNT, NUM_LABELS, device=GPU))
        assert loss.device.type == "cuda"


@pytest.mark.parametrize("load", [lambda: load_evaluator(None), load_second_evaluator])
def test_evaluators(load):
    evaluator = load()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved(evaluator, mode)
        output = evaluator.classify(torch.zeros(COUNT, 3, 64, 64, device=GPU))
        assert {part.device.type for part in output if part is not None} == {"cuda"}
