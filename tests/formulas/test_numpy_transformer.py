"""The Transformer in NumPy trains step for step as ours does with autograd and torch.optim.AdamW."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from untyped import untyped

import minitransformer as mt
from minitransformer.formulas.numpy_transformer import AdamW, NumpyClassifier

VOCAB, LENGTH, N_HEADS = 300, 11, 5


def pair(norm_position="post", positions="sinusoidal", activation="relu", n_layers=2):
    """The same fresh classifier in torch and in NumPy."""
    torch.manual_seed(0)
    config = mt.TransformerConfig(
        vocab_size=VOCAB, d_model=20, n_heads=N_HEADS, n_layers=n_layers, d_ff=44, max_len=LENGTH + 3,
        norm_position=norm_position, positions=positions, activation=activation,
        dropout=0.0, ops="formula",
    )  # fmt: skip
    torchs = mt.SequenceClassifier(mt.Encoder(config), 3, pooling="mean").double()
    state = {name: a.detach().numpy() for name, a in torchs.state_dict().items()}
    return torchs, NumpyClassifier(state, N_HEADS, norm_position, activation)


def batch(rng, size=8):
    """Ids that tell something about their label, with padding on the right."""
    labels = rng.integers(0, 3, size)
    ids = rng.integers(1, VOCAB, (size, LENGTH))
    ids[:, 0] = 1 + labels
    ids[np.arange(LENGTH) >= rng.integers(3, LENGTH + 1, size)[:, None]] = 0
    return ids, labels


def scatter(model, numpys, seed=1):
    """Weights of order 1, biases and norms too: fresh ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            size = p.shape[-1] ** -0.5 if p.dim() == 2 else 1.0
            p.copy_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64))
            numpys.parameters[name] = p.numpy().copy()


@pytest.mark.parametrize("seed", (1, 2, 3))
@pytest.mark.parametrize("norm_position", ("post", "pre"))
@pytest.mark.parametrize("positions", ("sinusoidal", "learned"))
@pytest.mark.parametrize("activation", ("relu", "gelu", "gelu_tanh"))
def test_loss_and_every_gradient_match_autograd(norm_position, positions, activation, seed):
    torchs, numpys = pair(norm_position, positions, activation)
    scatter(torchs, numpys, seed)
    ids, labels = batch(np.random.default_rng(seed))
    loss = cross_entropy(torchs(torch.from_numpy(ids)), torch.from_numpy(labels))
    loss.backward()
    by_numpy, grads = numpys.loss_and_gradients(ids, labels)
    assert abs(by_numpy - loss.item()) < 1e-12
    assert set(grads) == set(numpys.parameters) == {n for n, _ in torchs.named_parameters()}
    for name, p in torchs.named_parameters():
        assert grads[name].shape == tuple(p.shape), name
        assert abs(grads[name] - p.grad.numpy()).max() < 1e-11, name


def train(torchs, numpys, steps, eps=1e-8):
    """Both for some steps; returns the losses of each."""
    adam = torch.optim.AdamW(torchs.parameters(), lr=1e-3, eps=eps, weight_decay=0.01)
    adamw = AdamW(numpys.parameters, lr=1e-3, eps=eps, weight_decay=0.01)
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        ids, labels = batch(rng)
        loss = cross_entropy(torchs(torch.from_numpy(ids)), torch.from_numpy(labels))
        adam.zero_grad()
        loss.backward()
        adam.step()
        by_numpy, grads = numpys.loss_and_gradients(ids, labels)
        adamw.step(grads)
        losses.append((by_numpy, loss.item()))
    return np.array(losses).T


def apart(torchs, numpys):
    """The largest difference of each parameter."""
    return {
        name: abs(p.detach().numpy() - numpys.parameters[name]).max()
        for name, p in torchs.named_parameters()
    }


@pytest.mark.parametrize("norm_position", ("post", "pre"))
def test_200_steps_agree(norm_position):
    torchs, numpys = pair(norm_position)
    with untyped():
        by_numpy, by_torch = train(torchs, numpys, 200)
    assert abs(by_numpy - by_torch).max() < 1e-9
    assert max(apart(torchs, numpys).values()) < 1e-8
    assert by_numpy[-20:].mean() < by_numpy[:20].mean() - 0.3, "it learns"


def test_without_eps_rounding_moves_the_key_bias_and_nothing_else():
    torchs, numpys = pair()
    by_numpy, by_torch = train(torchs, numpys, 60, eps=1e-30)
    off = apart(torchs, numpys)
    key_biases = {name: error for name, error in off.items() if name.endswith("W_K.bias")}
    others = {name: error for name, error in off.items() if name not in key_biases}
    assert min(key_biases.values()) > 1e-3
    assert max(others.values()) < 1e-8
    assert abs(by_numpy - by_torch).max() < 1e-9


def test_adamw_matches_torch():
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((4, 3))
    parameter = torch.nn.Parameter(torch.from_numpy(theta.copy()))
    adam = torch.optim.AdamW([parameter], 0.03, (0.8, 0.95), 0.01, 0.3)
    adamw = AdamW({"theta": theta}, 0.03, 0.8, 0.95, 0.01, 0.3)
    for _ in range(5):
        g = rng.standard_normal(theta.shape)
        parameter.grad = torch.from_numpy(g)
        adam.step()
        adamw.step({"theta": g})
        assert abs(theta - parameter.detach().numpy()).max() < 1e-12


def test_parameters_are_copied():
    torchs, numpys = pair()
    before = torchs.classifier.weight.clone()
    train_only = AdamW(numpys.parameters, lr=1.0)
    train_only.step({name: np.ones_like(p) for name, p in numpys.parameters.items()})
    assert torch.equal(before, torchs.classifier.weight)
    assert not np.array_equal(before.detach().numpy(), numpys.parameters["classifier.weight"])
