"""Autocast: rows say in which dtype they were, and their statistics are exact in float64."""

import pytest
import torch
import torch.nn.functional as F

HINTS = {torch.bfloat16: (), torch.float16: ("autocast to float16 without scaler=",)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_its_bits_and_rows_say_the_dtype(build, batch, unchanged, dtype):
    def run(model):
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
        for _ in range(5):
            x, y = batch(model)
            with torch.autocast("cpu", dtype=dtype):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    recorder = unchanged(lambda: build("perceptron"), run, warned=HINTS[dtype])
    assert recorder.recording["layers"]["dtype"].sel(layer="0").item() == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_under_autocast_are_exact_numbers_of_the_rounded_tensors(build, batch, record, watch, assert_row, dtype):
    model, twin = build("perceptron").eval(), build("perceptron").eval()
    (x, y), kept = batch(model), watch(twin)
    with torch.autocast("cpu", dtype=dtype):
        F.cross_entropy(twin(x), y).backward()
    with record(model, warned=HINTS[dtype]) as recorder:
        with torch.autocast("cpu", dtype=dtype):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        recorder.step()
    for layer in ("0", "1", "5"):
        assert kept[layer][0].value.dtype == dtype
        assert_row(recorder.recording, kept[layer][0].value, layer=layer, signal="activation")
        assert_row(recorder.recording, kept[layer][0].grad, layer=layer, signal="activation_grad")


def test_gradients_that_underflow_in_float16_are_zeros_of_the_row(record, cell):
    model = torch.nn.Linear(4, 4)
    with record(model, warned=HINTS[torch.float16]) as recorder:
        with torch.autocast("cpu", dtype=torch.float16):
            output = model(torch.randn(8, 4))
        # 1e-8 is below half of the smallest subnormal float16, 2**-24; 1e-6 is subnormal.
        (output * torch.tensor([1e-8, 1e-6, 1.0, 1.0])).sum().backward()
        recorder.step()
    at = {"layer": "(root)", "signal": "activation_grad"}
    assert cell(recorder.recording, "zero_count", **at) == 8
    assert cell(recorder.recording, "subnormal_count", **at) == 8
