"""What is done for a GPU, as far as it can be seen without one. python -m pytest tests/test_gpu.py"""

import pytest
import torch
from tiny import batch_of, prompts_of, tiny

import lab.run.device as device_file
from lab.errors import RunError
from lab.fast import decode as decode_file
from lab.fast.decode import beam_search, decode
from lab.run.device import choose_device

NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCompile with TORCH_USE_CUDA_DSA"


def likeliest(logits, rows, t):
    return logits.argmax(dim=-1)


# ---------------------------------------------------------------------- which device


def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device_file.shutil, "which", lambda name: None)
    monkeypatch.setattr(device_file.os.path, "exists", lambda path: False)


@pytest.mark.parametrize("sign", ["/usr/bin/nvidia-smi", "/proc/driver/nvidia", "/dev/nvidia0"])
def test_auto_stops_where_there_is_a_driver_that_torch_can_not_use(sign, monkeypatch):
    no_gpu(monkeypatch)
    assert choose_device("auto")[0].type == "cpu"
    if sign.endswith("smi"):
        monkeypatch.setattr(device_file.shutil, "which", lambda name: sign)
    monkeypatch.setattr(device_file.os.path, "exists", lambda path: path == sign)
    for version, built in ((None, "without CUDA"), ("13.0", r"for CUDA 13\.0")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(RunError, match=rf"NVIDIA driver is here \({sign}\).* built {built}.* or say --device cpu$"):
            choose_device("auto")
    assert choose_device("cpu")[0].type == "cpu"  # as asked
    for hidden in ("", "-1", " "):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert choose_device("auto")[0].type == "cpu"


@pytest.mark.parametrize("operation", ["ones", "__matmul__", "softmax", "item"])
def test_a_device_is_tried_with_a_kernel(operation, monkeypatch):
    """As on a V100 with today's wheels: memory can be had, kernels can't."""

    def broken(*a, **k):
        raise RuntimeError(NO_KERNEL)

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda kind: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda kind: (7, 0))
    monkeypatch.setattr(torch if operation == "ones" else torch.Tensor, operation, broken)  # CUDA's errors come late
    with pytest.raises(RunError, match=r"this card, Tesla V100-SXM2-16GB, sm_70; .*/whl/cu126.*--device cpu") as e:
        choose_device("cpu")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("error", ["CUDA out of memory. Tried\nmore", "CUDA error: all CUDA-capable devices are busy"])
def test_another_error_of_a_device_is_its_first_line(error, monkeypatch):
    def broken(*a, **k):
        raise RuntimeError(error)

    monkeypatch.setattr(torch, "ones", broken)
    with pytest.raises(RunError, match=rf"can't be used here \({error.splitlines()[0]}\)"):
        choose_device("cpu")


# ---------------------------------------------------------------------- what waits for it


@pytest.mark.parametrize("beams", [1, 2])
def test_decoding_does_without_cudnns_attention(beams, monkeypatch):
    model, before, seen = tiny(), torch.backends.cuda.cudnn_sdp_enabled(), []
    hidden = model.hidden

    def watched(*a):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return hidden(*a)

    monkeypatch.setattr(model, "hidden", watched)
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        if beams == 1:
            decode(model, prompts_of([3, 5]), [4, 4], -1, likeliest)
        else:
            beam_search(model, prompts_of([3, 5]), [4, 4], 0, beams)
        assert torch.backends.cuda.cudnn_sdp_enabled()  # training has it again
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert len(seen) > 1 and not any(seen)


def test_a_gpu_gets_one_upload_between_two_looks_and_gives_one_answer(monkeypatch):
    """Twelve more steps, in rounds of four, cost three more uploads, and the tokens are read three times more."""
    monkeypatch.setattr(decode_file, "STEPS", {"cpu": 4})
    uploads, move, stack, reads = [], decode_file.move, torch.stack, []
    monkeypatch.setattr(decode_file, "move", lambda x, device: uploads.append(x) or move(x, device))
    monkeypatch.setattr(torch, "stack", lambda *a, **k: reads.append(a) or stack(*a, **k))
    model, prompts, found = tiny(seed=3), prompts_of([3, 5, 4, 6, 7, 3, 5, 8]), []
    for limit in (12, 24):
        uploads.clear(), reads.clear()
        news = decode(model, prompts, [limit] * 8, -1, likeliest)
        assert [len(new) for new in news] == [limit] * 8
        found.append((len(uploads), len(reads)))
    assert [a - b for a, b in zip(*reversed(found))] == [3, 3]


@pytest.mark.parametrize("options", [{}, {"soft": True}, {"lm": False}])
def test_what_goes_to_a_device_is_contiguous(tok, options):
    """The copy of a tensor that is not would wait."""
    for group in batch_of(tok, 4, 3, **options):
        tensors = (group.ids, group.supervised, group.labels, group.lm, group.replay, group.soft, group.hard)
        assert all(x.is_contiguous() for x in (*tensors, group.packing.position, group.packing.place))
