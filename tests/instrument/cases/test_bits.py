"""Training and inference give the same bits with a recorder as without."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from covshift.schema import Status

TRANSFORMER_SAYS = ("out_proj", "functional=True")
"""Stock attention uses ``out_proj`` through its weights, and stock transformer layers a functional activation."""


def test_case_01_a_perceptron_keeps_its_bits_over_100_steps(build, train, unchanged):
    recorder = unchanged(lambda: build("perceptron"), lambda model: train(model, 100))
    assert recorder.recording["layers"].sizes["step"] == 100


def test_case_02_convolutions_batch_norm_statistics_and_dropout_keep_their_bits(build, train, unchanged):
    recorder = unchanged(lambda: build("convolutional"), lambda model: train(model, 20))
    assert (recorder.recording["layers"]["count"].sel(signal="activation_grad", layer=["0", "1", "2"]) > 0).all()


def test_case_03_a_stock_transformer_keeps_its_bits_in_training(build, train, unchanged):
    recorder = unchanged(lambda: build("transformer"), lambda model: train(model, 10), may_warn=TRANSFORMER_SAYS)
    assert "encoder.layers.1.linear1" in recorder.recording["layers"].layer


def evaluate(model, x, recorder, **inputs):
    """Output of an inference pass, with rows of it wherever there is a recorder."""
    model.eval()
    with torch.no_grad():
        if recorder is None:
            return model(x, **inputs)
        with recorder.evaluation():
            return model(x, **inputs)


def stock_encoder(*, norm_first):
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()


def names_in(recording):
    return set(recording["evaluation/layers"].layer.values.tolist())


def test_case_04_inference_of_a_transformer_under_bf16_autocast_keeps_its_bits(record):
    model, x = stock_encoder(norm_first=False), torch.randn(2, 7, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = evaluate(model, x, None)
        with record(model, may_warn=("functional=True", "no recorded forward pass", "fused")) as recorder:
            found = evaluate(model, x, recorder)
    assert torch.equal(found, expected)
    # The fused path calls no module inside a layer: rows of one would prove that it was switched off.
    assert "layers.1" in names_in(recorder.recording)
    assert not any("linear1" in name for name in names_in(recorder.recording))


def test_case_05_inference_with_norm_first_and_a_padding_mask_keeps_its_bits(record):
    model, x = stock_encoder(norm_first=True), torch.randn(2, 7, 32)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 3:] = True
    expected = evaluate(model, x, None, src_key_padding_mask=mask)
    with record(model, may_warn=("functional=True", "no recorded forward pass", "fused")) as recorder:
        found = evaluate(model, x, recorder, src_key_padding_mask=mask)
    assert torch.equal(found, expected)
    assert "layers.1" in names_in(recorder.recording)
    assert not any("linear1" in name for name in names_in(recorder.recording))


def test_case_06_recurrent_nets_keep_their_bits(build, train, unchanged, status):
    recorder = unchanged(lambda: build("recurrent"), lambda model: train(model, 10), may_warn=("is not the batch",))
    layers = recorder.recording["layers"]
    assert {"lstm:0", "lstm:1.0", "lstm:1.1", "gru:0", "gru:1"} <= set(layers.layer.values.tolist())
    # Of 5 time steps only the last is read.
    assert layers["zero_count"].sel(layer="gru:0", signal="activation_grad", step=0).item() == 16 * 4 * 8
    assert status(recorder.recording, "lstm:1.0") in (Status.UNUSED_OUTPUT, Status.NO_GRADIENT_ARRIVED)


def test_case_07_a_tensor_of_three_consumers_keeps_its_bits(build, train, unchanged):
    unchanged(lambda: build("three consumers"), lambda model: train(model, 20))


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x)


def gradient_penalty_steps(critic, steps):
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        real, fake = torch.randn(8, 6), torch.randn(8, 6)
        mixed = torch.lerp(real, fake, torch.rand(8, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        loss = critic(fake).mean() - critic(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


FIRST = "rows hold the gradients of the first"


def test_case_25_a_gradient_penalty_keeps_its_bits(unchanged, cell):
    recorder = unchanged(Critic, lambda model: gradient_penalty_steps(model, 10), warned=(FIRST,))
    # Three forward passes of 8 examples; the second derivative brings the first pass no second gradient.
    for signal in ("activation", "activation_grad"):
        assert cell(recorder.recording, "count", layer="net.0", signal=signal, step=9) == 3 * 8 * 32


@pytest.mark.parametrize("every", [1, 3])
def test_evaluation_passes_in_between_leave_the_training_bits_alone(build, train, batch, unchanged, every):
    def run(model):
        losses = []
        for _ in range(4):
            losses += train(model, 2)
            model.eval()
            with torch.no_grad():
                losses.append(F.cross_entropy(*_logits(model, batch)).item())
            model.train()
        return losses

    unchanged(lambda: build("convolutional"), run, every=every)


def _logits(model, batch):
    x, y = batch(model)
    return model(x), y
