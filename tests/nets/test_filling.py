"""Networks that are built without memory, and their weights put into them."""

import pytest
import torch
from torch import nn

from iclevr_diffusion.nets.weights import fill, nothing_allocated


class Net(nn.Module):
    """It begins with random values in several ways, and has a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.empty(3)).requires_grad_(False)
        for init in (nn.init.normal_, nn.init.xavier_normal_, nn.init.xavier_uniform_):
            init(self.linear.weight)
        for init in (nn.init.trunc_normal_, nn.init.ones_):
            init(self.linear.bias)
        nn.init.uniform_(tensor=self.frozen)

    def forward(self, x):
        return self.norm(self.linear(x)) + self.frozen


def test_a_filled_network_computes_as_the_one_that_was_saved():
    saved = Net().eval()
    with nothing_allocated():
        net = Net().eval()
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    fill(net, saved.state_dict())
    x = torch.randn(4, 2)
    assert torch.equal(net(x), saved(x))
    trained = [name for name, weight in net.named_parameters() if weight.requires_grad]
    assert trained == [name for name, weight in saved.named_parameters() if weight.requires_grad]


def test_a_filled_network_does_not_share_its_weights_with_the_file():
    state = Net().state_dict()
    with nothing_allocated():
        net = Net()
    fill(net, state)
    before = net.linear.weight.clone()
    state["linear.weight"].zero_()
    assert torch.equal(net.linear.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_filled_network_keeps_its_own_types(dtype):
    saved = Net()
    state = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in saved.state_dict().items()
    }
    with nothing_allocated():
        net = Net()
    fill(net, state)
    own, theirs = net.state_dict(), saved.state_dict()
    assert {key: value.dtype for key, value in own.items()} == {
        key: value.dtype for key, value in theirs.items()
    }
    torch.testing.assert_close(own, theirs, atol=1e-2, rtol=1e-2)
