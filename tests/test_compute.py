"""How to run: read strictly, set while running, put back afterwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxplain.compute import Compute
from voxplain.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4 << 30),
        ("4 gib", 4 << 30),
        ("800MB", 800 << 20),
        ("1.5G", 3 << 29),
        ("2k", 2048),
        ("512", 512),
        ("7B", 7),
        ("1T", 1 << 40),
    ],
)
def test_memory(text: str, expected: int) -> None:
    assert Compute(memory=text).memory_bytes == expected


@pytest.mark.parametrize("text", ["", "lots", "-1GB", "0", "0GB", "1..5GB", "GB", "4PB", ".", "0.1B", "9" * 400 + "GB"])
def test_memory_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="memory"):
        Compute(memory=text)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for name in ("memory", "device"):
        said = ""
        try:
            Compute(**{name: text})
        except InputError as error:
            said = str(error)
        assert not said or repr(text) in said


def test_devices() -> None:
    assert Compute(device="cpu").torch_device == torch.device("cpu")
    assert Compute().torch_device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count()
    with pytest.raises(InputError, match=rf"device cuda:{count} is not there; CUDA devices found: {count}"):
        Compute(device=f"cuda:{count}")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "mps", "CPU", "cpu\n", ""])
def test_devices_of_other_names_are_refused(device: str) -> None:
    with pytest.raises(InputError, match="device is auto, cpu, cuda or cuda:N"):
        Compute(device=device)


@pytest.mark.parametrize("name", ["threads", "batch_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_are_at_least_one(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1; got {value}"):
        Compute(**{name: value})  # type: ignore[arg-type]


def test_precisions() -> None:
    assert Compute().dtype == "float32"
    weights, inputs = torch.rand(3, 3), torch.rand(2, 3)
    for dtype in ("float32", "bfloat16"):
        with Compute(device="cpu", dtype=dtype).precision():
            assert torch.nn.functional.linear(inputs, weights).dtype == getattr(torch, dtype)
    assert torch.nn.functional.linear(inputs, weights).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float16", "bf16", "half", "float64", "", "torch.bfloat16"])
def test_other_precisions_are_refused(dtype: str) -> None:
    with pytest.raises(InputError, match=f"dtype is float32 or bfloat16; got {dtype!r}"):
        Compute(dtype=dtype)


def test_bfloat16_is_refused_where_it_would_drown_what_parts_change() -> None:
    with pytest.raises(InputError, match="incremental engine is exact in float32 only; bfloat16 needs engine full"):
        Compute(dtype="bfloat16", engine="incremental")


def test_a_callers_own_autocast_is_switched_off_and_put_back() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with Compute(device="cpu").running():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


def test_threads_are_set_while_running_and_put_back() -> None:
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    seen = []

    def fail() -> None:
        with Compute(threads=other).running():
            seen.append(torch.get_num_threads())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [other]
    assert torch.get_num_threads() == before
    with Compute().running():
        assert torch.get_num_threads() == before


def test_weights_that_change_while_running_are_read_again_in_16_bits() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    found = []
    with Compute(device="cpu", threads=1).running():
        for value in (1.0, 2.0, 4.0):
            with torch.no_grad():
                layer.weight.fill_(value)
            # Gradients on: autocast keeps copies of weights that want one.
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found.append(float(layer(torch.ones(1, 1)).detach()))
    assert found == [1, 2, 4]
