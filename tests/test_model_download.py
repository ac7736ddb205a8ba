"""Downloads of pretrained weights, from a server on the loopback interface.

python -m pytest tests/test_model_download.py"""

import hashlib
import threading

import pytest
import torch
from loopback import PAGE, Reply, serve
from safetensors.torch import save
from test_pretrained import same

import lab.run.pretrained as pretrained_file
from lab.errors import ModelFileError
from lab.run.pretrained import NANO, PRETRAINED, SIZES, download, nano_tokenizer, pretrained, read_config

WHOLE = (NANO / "model.safetensors").read_bytes()
OTHER = save({"wte.weight": torch.zeros(3)})


@pytest.fixture
def site(monkeypatch):
    """gpt2 (with a checksum) and gpt2-medium (without) from a server on the loopback interface."""
    monkeypatch.setenv("no_proxy", "*")
    with serve() as site:
        for name, digest in (("gpt2", hashlib.sha256(WHOLE).hexdigest()), ("gpt2-medium", None)):
            monkeypatch.setitem(PRETRAINED, name, PRETRAINED[name]._replace(url=f"{site.url}/{name}", sha256=digest))
            site.replies[f"/{name}"] = [Reply(WHOLE)]
        yield site


def refused(name, folder):
    """The one line about a download that failed: address, place, and what to do offline."""
    with pytest.raises(ModelFileError) as e:
        download(name, folder)
    text = str(e.value)
    assert text.startswith(f"{name}: can't download {PRETRAINED[name].url} (") and "\n" not in text
    assert str(folder / "models" / name / "model.safetensors") in text and "--model nano" in text
    assert not (folder / "models" / name / "model.safetensors").exists()
    return text


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium"])
def test_weights_are_downloaded_once_and_told_before(name, site, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SIZES, name, read_config(NANO / "config.json"))
    monkeypatch.setattr(pretrained_file, "tokenizer_of", lambda source: nano_tokenizer())
    for _ in range(2):
        model, _ = pretrained(name, tmp_path, "default: not all tasks are toy tasks")
        assert same(model.state_dict(), pretrained("nano")[0].state_dict())
    assert site.log == [(name, None, len(WHOLE))]
    first, *more = capsys.readouterr().out.splitlines()
    size = PRETRAINED[name].megabytes
    said = f"model    {name} (default: not all tasks are toy tasks) is downloaded once, {size} MB; --model nano needs"
    assert first == f"{said} no download" and more[0].startswith(f"downloading {site.url}/{name} to {tmp_path}")
    digest = hashlib.sha256(WHOLE).hexdigest()
    assert more[1:] == ([] if name == "gpt2" else [f"no checksum is published for it; its SHA-256 is {digest}"])
    assert [p.name for p in (tmp_path / "models" / name).iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium"])
def test_a_download_that_was_cut_off_is_continued(name, site, tmp_path):
    site.replies[f"/{name}"] = [Reply(WHOLE, cut=1000), Reply(WHOLE)]
    assert "cut off: 1000 of" in refused(name, tmp_path)
    assert download(name, tmp_path).read_bytes() == WHOLE
    assert site.log[1] == (name, "bytes=1000-", len(WHOLE) - 1000)


@pytest.mark.parametrize(
    "name, reply, text",
    [
        ("gpt2", Reply(OTHER), f"broken or changed: its SHA-256 is {hashlib.sha256(OTHER).hexdigest()}"),
        ("gpt2-medium", Reply(WHOLE[:-1000]), "not a whole safetensors file"),
        ("gpt2-medium", Reply(PAGE), "not a whole safetensors file"),
        ("gpt2-medium", Reply(PAGE, type="text/html"), "a web page came"),
        ("gpt2", Reply(PAGE, status=404), "404"),
        ("gpt2", Reply(b""), "an empty file came"),
    ],
)
def test_what_is_no_weight_file_leaves_nothing_and_the_next_try_starts_anew(name, reply, text, site, tmp_path):
    site.replies[f"/{name}"] = [reply, Reply(WHOLE)]
    assert text in refused(name, tmp_path)
    assert not list((tmp_path / "models" / name).iterdir())
    assert download(name, tmp_path).read_bytes() == WHOLE and site.log[-1][1] is None


def test_without_network_or_place_it_is_one_line_and_nothing_is_left(monkeypatch, tmp_path):
    monkeypatch.setitem(PRETRAINED, "gpt2", PRETRAINED["gpt2"]._replace(url="http://127.0.0.1:9/gpt2"))
    refused("gpt2", tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    (tmp_path / "file").write_text("")
    refused("gpt2", tmp_path / "file")


def test_two_that_want_it_at_once_download_it_once(site, tmp_path):
    site.replies["/gpt2"] = [Reply(WHOLE, wait=0.2)]
    both = [threading.Thread(target=download, args=("gpt2", tmp_path)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(10)
    assert len(site.log) == 1 and (tmp_path / "models/gpt2/model.safetensors").read_bytes() == WHOLE


def test_every_pretrained_model_is_fetched_over_https():
    assert PRETRAINED.keys() == SIZES.keys()
    assert all(found.url.startswith("https://huggingface.co/openai-community/") for found in PRETRAINED.values())
