import pytest
import torch
from torch import nn

from helpers import tiny_gan, tiny_module
from iclevr_diffusion.training.muon import Muon, orthogonal
from iclevr_diffusion.training.optimizer import OptimizerSettings


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 6, 6)])
def test_orthogonal_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=generator)
    u, _, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    core = u.mT @ orthogonal(matrices).double() @ v.mT
    values = torch.diagonal(core, dim1=1, dim2=2)
    assert (core - torch.diag_embed(values)).abs().max() < 1e-3
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_first_step_is_that_of_the_paper():
    weight = nn.Parameter(torch.randn(4, 2, 3, 3))
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    optimizer = Muon([weight], [], matrix_lr=0.1, momentum=0.95, lr=1.0, weight_decay=0.5)
    # Nesterov's look ahead: (1 - 0.95) of the gradient, and 0.95 of the momentum, 0.05 of it too.
    ahead = 0.05 * weight.grad + 0.95 * 0.05 * weight.grad
    direction = orthogonal(ahead.view(1, 4, 18)).view_as(weight)
    optimizer.step()
    expected = before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 18**0.5 * direction
    assert torch.allclose(weight, expected, atol=1e-6)


def test_the_rest_moves_as_with_adamw():
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    matrix = nn.Parameter(torch.eye(3))
    muon = Muon([matrix], [ours], matrix_lr=0.1, **settings)
    adamw = torch.optim.AdamW([theirs], **settings)
    for step in range(3):
        ours.grad = theirs.grad = torch.arange(5.0) - step
        matrix.grad = torch.ones(3, 3)
        muon.step()
        adamw.step()
    assert torch.equal(ours, theirs)
    assert len(muon.param_groups) == 2


def test_a_restored_optimizer_continues_with_the_same_bits():
    def trained(steps: int, state: dict | None = None) -> tuple[list, dict]:
        weights = [nn.Parameter(torch.arange(6.0).view(2, 3)), nn.Parameter(torch.ones(2))]
        optimizer = Muon(weights[:1], weights[1:], matrix_lr=0.1, lr=0.1)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            for weight, saved in zip(weights, state["weights"], strict=True):
                weight.data.copy_(saved)
        for _ in range(steps):
            loss = (weights[0].sum(1) * weights[1]).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        saved = [weight.detach().clone() for weight in weights]
        return saved, {"optimizer": optimizer.state_dict(), "weights": saved}

    unbroken, _ = trained(4)
    _, half = trained(2)
    resumed, _ = trained(2, half)
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))


def test_muon_moves_the_inner_weights_of_the_unet_alone():
    module = tiny_module(name="muon", matrix_lr=1e-3)
    optimizer = module.optimizer_settings.build(module.net)
    others, inner = optimizer.param_groups
    names = {id(parameter): name for name, parameter in module.net.named_parameters()}
    moved = {names[id(parameter)] for parameter in inner["params"]}
    assert {"unet.mid_block.resnets.0.conv1.weight", "unet.mid_block.attentions.0.to_q.weight"} <= (
        moved
    )
    kept = {names[id(parameter)] for parameter in others["params"]}
    assert {"unet.conv_in.weight", "unet.conv_out.weight", "label_embedding.weight"} <= kept
    assert len(moved) + len(kept) == len(names)
    assert inner["lr"] == 1e-3


def test_muon_is_refused_where_it_does_not_belong():
    with pytest.raises(ValueError, match=r"optimizer=muon needs .* which Generator does not have"):
        tiny_gan(name="muon", matrix_lr=1e-3)
    with pytest.raises(ValueError, match="matrix_lr is for optimizer=muon"):
        OptimizerSettings(matrix_lr=1e-3)
    with pytest.raises(ValueError, match="matrix_lr is for optimizer=muon"):
        OptimizerSettings(name="muon")
