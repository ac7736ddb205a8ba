"""Which device a run computes on, and in which precision. python -m pytest tests/test_device.py"""

import pytest
import torch

import lab.run.device as device_file
from lab.errors import RunError
from lab.run.device import choose_device


@pytest.mark.parametrize(
    "dtype, wanted", [("auto", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)]
)
def test_a_cpu_computes_in_float32_unless_asked(dtype, wanted):
    assert choose_device("cpu", dtype) == (torch.device("cpu"), wanted, "as asked")


def test_auto_takes_a_gpu_if_there_is_one_and_says_so():
    device, _, why = choose_device("auto")
    found = torch.cuda.is_available()
    assert (device.type, why) == (("cuda", "the GPU that was found") if found else ("cpu", "no CUDA device found"))


@pytest.mark.parametrize("supported, wanted", [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bfloat16_computes_in_float16(monkeypatch, supported, wanted):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert device_file.choose_dtype(torch.device("cuda"), "auto") is wanted


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpu; rm", ""])
def test_a_device_that_is_not_there_is_one_line(device):
    with pytest.raises(RunError, match=f"--device {device}: can't be used here") as e:
        choose_device(device)
    assert "\n" not in str(e.value)


def test_each_of_several_processes_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (device_file.own_device("cuda"), device_file.own_device("cpu")) == ("cuda:1", "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device_file, "world_size", lambda: 2)
    for device, text in (("cuda", "2 processes of torchrun, but 1 GPUs; --nproc_per_node=1"), ("mps", "of its own")):
        with pytest.raises(RunError, match=text):
            choose_device(device)
