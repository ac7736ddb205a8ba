"""GPT-2 and other models from a hub on the loopback interface, and from caches that huggingface_hub has made.

python -m pytest tests/test_model_download.py"""

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, DIGEST, OTHER, PAGE, VOCABULARY, WEIGHTS, Machine, git_hash, put, serve_hub
from safetensors.torch import save

import train
from lab.files import read_json
from lab.run.hub import OWNER, PRETRAINED, is_name
from lab.run.pretrained import NANO, SIZES, nano_tokenizer, pretrained

OFFLINE = {"HF_HUB_OFFLINE": "1"}
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # where nothing listens
REPOSITORY = f"{OWNER}/gpt2"


@pytest.fixture
def site():
    with serve_hub() as site:
        yield site


@pytest.fixture
def machine(site, tmp_path):
    return Machine(tmp_path, site.url)


def load(source: str, cache_dir: str):
    """In a process of its own: a hash of the weights, and ids of a text."""
    model, tokenizer = pretrained(source, cache_dir, "as asked")
    weights = b"".join(p.numpy().tobytes() for p in model.state_dict().values())
    return hashlib.sha256(weights).hexdigest(), tokenizer.name, tokenizer.encode("the mill is a pub")


def loaded(machine, source="gpt2", **environment):
    return machine.call(load, source, str(machine.home / "l2kd"), **environment)


@pytest.fixture(scope="module")
def nano_loaded():
    """What `load` must give, since nano is served: its weights and its ids."""
    weights, _, ids = load("nano", "")
    return weights, "gpt2", ids


def put_gpt2(machine, repo=REPOSITORY, commit=COMMIT, links=True):
    put(machine, repo, commit, "vocab.json", VOCABULARY, git_hash(VOCABULARY), links)
    return put(machine, repo, commit, "model.safetensors", WEIGHTS, DIGEST, links)


def content(site) -> list:
    """The files whose content has been sent, from which byte."""
    return [(how, file) for how, file in site.log if how.startswith("from")]


# ---------------------------------------------------------------------- from the hub, once


def test_the_vocabulary_comes_before_the_weights_and_both_are_downloaded_once(site, machine, nano_loaded):
    first = loaded(machine)
    assert first.value == nano_loaded and first.err == ""
    said = ["GPT-2's vocabulary is downloaded once: vocab.json, 1 MB"]
    said += [f"gpt2 (as asked) is downloaded once: model.safetensors, {len(WEIGHTS) / 1e6:.0f} MB"]
    assert first.out.splitlines() == [f"model    {line}" for line in said]
    assert content(site) == [("from 0", "vocab.json"), ("from 0", "model.safetensors")]
    site.log.clear()
    for environment in ({}, OFFLINE, NOWHERE):
        assert loaded(machine, **environment) == (nano_loaded, "", "", "")
    assert site.log == []  # the hub isn't even asked


def test_a_whole_run_of_train_py_starts_from_the_hub_and_again_without_it(site, machine, lab):
    argv = [*lab, "--model", "gpt2", "--epochs", "1", "--kd", "none", "--cache-dir", str(machine.home / "l2kd")]
    outcome = machine.call(train.main, argv)
    assert outcome.value == 0, outcome
    (config,) = (machine.home / "runs").glob("*/config.json")
    assert read_json(config)["model"] == "gpt2"
    site.files.clear()
    again = machine.call(train.main, [*argv, "--seed", "1"], **NOWHERE)
    assert again.value == 0 and "downloaded" not in again.out, again


@pytest.mark.parametrize("fault", ["cut", "cut twice", "rate limit", "busy"])
def test_what_is_transient_is_tried_again(fault, site, machine, nano_loaded):
    faults = {"cut": [("cut", 1000)], "cut twice": [("cut", 1000), ("cut", 70_000)], "rate limit": [429, 429]}
    site.faults["model.safetensors"] = faults.get(fault, [503])
    outcome = machine.call(load_in_small_pieces, str(machine.home / "l2kd"))
    assert outcome.value == nano_loaded and outcome.err == ""
    if fault.startswith("cut"):
        assert ("from 1000", "model.safetensors") in content(site)  # and not from the beginning
    assert len(machine.blobs(REPOSITORY)) == 2


def load_in_small_pieces(cache_dir):
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = 500  # bytes; what has come of a piece that is cut off comes again
    return load("gpt2", cache_dir)


@pytest.mark.parametrize("file, new", [("model.safetensors", b"x"), ("model.safetensors", save({"a": torch.zeros(9)}))])
def test_another_file_in_place_of_the_weights_is_refused_and_the_next_try_starts_anew(
    file, new, site, machine, nano_loaded
):
    whole = new.ljust(len(WEIGHTS), b"\0")  # of the promised length, or the library refuses it itself
    site.faults[file] = [whole]
    outcome = loaded(machine)
    assert f"its SHA-256 is {hashlib.sha256(whole).hexdigest()}, not {DIGEST}; deleted" in outcome.error
    assert "\n" not in outcome.error and [path.name for path in machine.blobs(REPOSITORY)] == [git_hash(VOCABULARY)]
    assert loaded(machine).value == nano_loaded


@pytest.mark.parametrize("bad", [b"{}", b"[" * 99, VOCABULARY.replace(b"256", b"255")])
def test_another_vocabulary_is_refused_before_the_weights_are_asked_for(bad, site, machine, nano_loaded):
    site.faults["vocab.json"] = [bad.ljust(len(VOCABULARY))[: len(VOCABULARY)]]
    outcome = loaded(machine)
    assert "can't get GPT-2's vocabulary: gpt2: vocab.json" in outcome.error and "SHA-256" in outcome.error
    assert "model.safetensors" not in dict(map(reversed, site.log))
    assert loaded(machine).value == nano_loaded


# ---------------------------------------------------------------------- from a cache


@pytest.mark.parametrize(
    "repo, commit, links",
    [
        (REPOSITORY, COMMIT, True),
        (REPOSITORY, COMMIT, False),
        ("gpt2", COMMIT, True),  # made when it had no owner
        ("gpt2", COMMIT, False),
        ("gpt2", "11c5a3d5811f50298f278a704980280950aedb10", True),  # an earlier commit with the same file
    ],
)
def test_a_cache_of_huggingface_hub_is_found_without_the_network(repo, commit, links, site, machine, nano_loaded):
    put_gpt2(machine, repo, commit, links)
    assert loaded(machine, **OFFLINE) == (nano_loaded, "", "", "")
    assert loaded(machine, **NOWHERE) == (nano_loaded, "", "", "")
    assert site.log == []


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_cache_is_where_the_environment_says(variable, machine, nano_loaded):
    below = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub", "HOME": ".cache/huggingface/hub"}.get(variable, "")
    put_gpt2(machine)
    place = machine.home / "another" / below
    place.parent.mkdir(parents=True, exist_ok=True)
    machine.cache.rename(place)
    del machine.environment["HF_HOME"]
    assert loaded(machine, **OFFLINE, **{variable: str(machine.home / "another")}).value == nano_loaded


def test_a_cache_that_the_library_made_is_found_by_us(site, machine, nano_loaded):
    machine.call(download_both)
    site.log.clear()
    assert loaded(machine, **OFFLINE).value == nano_loaded and site.log == []


def download_both():
    from huggingface_hub import hf_hub_download

    for file in ("vocab.json", "model.safetensors"):
        hf_hub_download("gpt2", file, revision=COMMIT)  # by its old name


def test_what_an_earlier_version_downloaded_or_the_user_put_there_is_found(site, machine, nano_loaded):
    put(machine, REPOSITORY, COMMIT, "vocab.json", VOCABULARY, git_hash(VOCABULARY))
    own = machine.home / "l2kd" / "models" / "gpt2" / "model.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(WEIGHTS)
    assert loaded(machine, **OFFLINE).value == nano_loaded
    own.write_bytes(WEIGHTS[:-1])
    assert f"{own} is broken or changed" in loaded(machine).error and own.exists()


def test_the_checksum_of_a_cached_file_is_computed_once(machine):
    path = put_gpt2(machine)
    reads = [machine.call(load_and_count, str(machine.home / "l2kd"), **OFFLINE).value for _ in range(2)]
    assert reads == [1, 0]
    os.utime(path.resolve(), (1, 1))
    assert machine.call(load_and_count, str(machine.home / "l2kd"), **OFFLINE).value == 1


def load_and_count(cache_dir):
    """How often pretrained() computes the SHA-256 of weights."""
    from lab.run import hub

    seen, plain = [], hub.sha256
    hub.sha256 = lambda path: seen.append(path) or plain(path)
    load("gpt2", cache_dir)
    return sum(path.name.endswith(".safetensors") for path in seen)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty"])
def test_a_damaged_file_of_a_cache_is_named_and_left_to_the_user(damage, links, machine):
    path = put_gpt2(machine, links=links)
    assert loaded(machine, **OFFLINE).error == ""  # so it has been checked before
    middle = len(WEIGHTS) // 2
    bit = WEIGHTS[:middle] + bytes([WEIGHTS[middle] ^ 1]) + WEIGHTS[middle + 1 :]
    path.write_bytes({"cut off": WEIGHTS[:-9], "one bit": bit, "empty": b""}[damage])
    error = loaded(machine).error
    assert f"{path} is broken or changed" in error and f"delete {path.resolve()} to try anew" in error
    assert path.exists() and "\n" not in error


def test_a_damaged_vocabulary_of_a_cache_is_passed_over(site, machine, nano_loaded):
    put_gpt2(machine)
    put(machine, f"{OWNER}/gpt2-xl", PRETRAINED["gpt2-xl"].commit, "vocab.json", VOCABULARY, git_hash(VOCABULARY))
    (machine.cache / f"models--{OWNER}--gpt2" / "blobs" / git_hash(VOCABULARY)).write_bytes(b"{}")
    assert loaded(machine, **OFFLINE).value == nano_loaded


# ---------------------------------------------------------------------- any GPT-2 of the hub


@pytest.fixture
def theirs(site):
    """Somebody's model: nano, so with its name as its tokenizer's."""
    add(site, "them/small-gpt")
    return "them/small-gpt"


def add(site, repo):
    for file in ("config.json", "model.safetensors"):
        site.files[repo, file] = (NANO / file).read_bytes()


def test_another_model_of_the_hub_is_downloaded_once_at_one_commit(site, machine, theirs, nano_loaded):
    first = loaded(machine, theirs)
    assert first.value == (nano_loaded[0], "nano", nano_loaded[2]) and first.err == ""
    assert "model    them/small-gpt (as asked) is downloaded once: model.safetensors, " in first.out
    site.log.clear()
    assert loaded(machine, theirs).value == first.value
    assert content(site) == [] and {file for _, file in site.log} == {"config.json"}  # has main moved?
    site.log.clear()
    for environment in (OFFLINE, NOWHERE):
        assert loaded(machine, theirs, **environment).value == first.value
    assert loaded(machine, f"{theirs}@{OTHER}").value == first.value  # a commit never moves
    assert site.log == []


@pytest.mark.parametrize("revision", ["main", OTHER, "refs/pr/1"])
def test_a_revision_is_a_branch_a_commit_or_a_pull_request(revision, machine, theirs, nano_loaded):
    assert loaded(machine, f"{theirs}@{revision}").value == (nano_loaded[0], "nano", nano_loaded[2])


def test_shards_of_the_hub_are_read_and_checked(site, machine, nano_loaded):
    from safetensors.torch import load as parse

    add(site, "them/shards")
    weights = parse(site.files.pop(("them/shards", "model.safetensors")))
    parts = {f"model-0000{i}-of-00002.safetensors": dict(list(weights.items())[i - 1 :: 2]) for i in (1, 2)}
    index = {"weight_map": {key: file for file, part in parts.items() for key in part}}
    site.files["them/shards", "model.safetensors.index.json"] = json.dumps(index).encode()
    site.files |= {("them/shards", file): save(part) for file, part in parts.items()}
    assert loaded(machine, "them/shards").value == (nano_loaded[0], "nano", nano_loaded[2])
    last = max(parts)
    assert loaded(machine, "them/shards", **OFFLINE).error == ""
    (machine.home / "hf").rename(machine.home / "old")
    site.faults[last] = [b"?" * len(site.files["them/shards", last])]
    assert f"{last} is broken or changed: its SHA-256 is" in loaded(machine, "them/shards").error


def test_a_damaged_file_of_another_model_is_named(site, machine, theirs):
    assert loaded(machine, theirs).error == ""
    (path,) = machine.cache.glob("*small-gpt/snapshots/*/model.safetensors")
    path.write_bytes(WEIGHTS[:5000] + b"?" + WEIGHTS[5001:])
    assert f"{path} is broken or changed" in loaded(machine, theirs, **OFFLINE).error and path.exists()


def test_two_at_once_download_it_once(site, machine, nano_loaded):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: loaded(machine).value, range(2)))
    assert both == [nano_loaded] * 2
    assert content(site).count(("from 0", "model.safetensors")) == 1


def test_the_short_name_and_the_whole_one_are_the_same_model(site, machine, tmp_path, monkeypatch):
    from lab.run.options import parse

    both = [parse(["--model", name, "--teacher-model", name]) for name in ("gpt2-xl", f"{OWNER}/gpt2-xl")]
    assert both[0] == both[1] and both[0].model == "gpt2-xl"
    monkeypatch.chdir(tmp_path)
    (tmp_path / OWNER / "gpt2-xl").mkdir(parents=True)
    assert parse(["--model", f"{OWNER}/gpt2-xl"]).model == f"{OWNER}/gpt2-xl"  # a folder that is there


def test_a_run_is_named_after_its_model_and_the_owner():
    from lab.run.options import parse, run_name

    for model, name in (
        ("them/small", "them_small"),
        ("them/small@v1", "them_small_v1"),
        ("them/small@refs/pr/1", "them_small_refs_pr_1"),
    ):
        assert run_name(parse(["--order", "woz", "--model", model]), ["woz"]).endswith(f"-model={name}")


def test_a_folder_goes_before_a_repository_of_its_name(site, machine, theirs, monkeypatch, nano_loaded):
    shutil.copytree(NANO, machine.home / theirs)
    monkeypatch.chdir(machine.home)
    outcome = machine.call(load_in, str(machine.home), theirs)
    assert outcome.value == (nano_loaded[0], "nano", nano_loaded[2]) and site.log == []


def load_in(folder, source):
    os.chdir(folder)
    return load(source, f"{folder}/l2kd")


def test_a_folder_called_gpt2_is_not_openais_and_that_is_said(machine, nano_loaded):
    put_gpt2(machine)
    (machine.home / "gpt2").mkdir()
    outcome = machine.call(load_in, str(machine.home), "gpt2", **OFFLINE)
    assert outcome.value == nano_loaded and "note     gpt2 is OpenAI's model; the folder" in outcome.out


@pytest.mark.parametrize("name", ["a/b", "them/GPT_2.1-x", "a/b@main", "a/b@refs/pr/1", "a/b@v1.0"])
def test_what_is_a_name_on_the_hub(name):
    assert is_name(name)


@pytest.mark.parametrize("name", ["gpt3", "/a/b", "./a", "../a", "a/b/c", "a/", "a b/c", "~/a", "a/b@", Path("a/b")])
def test_what_is_none(name):
    assert not is_name(name)


# ---------------------------------------------------------------------- what can't be had is one line


@pytest.mark.parametrize(
    "source, text",
    [
        ("them/gated", "them/gated: gated; accept its terms at {url}/them/gated, and log in"),
        ("them/missing", "them/missing: no folder, and no repository of {url} that you may read; check the name"),
        ("runs/model", "runs/model: no folder, and no repository of {url}"),
        ("them/small-gpt@v9", "them/small-gpt@v9: {url}/them/small-gpt has no revision v9"),
        (f"them/small-gpt@{'9' * 40}", "has no revision 9999"),
        ("them/empty", "them/empty: the repository has no config.json"),
        ("them/pickle", "there is no model.safetensors; where pytorch_model.bin is, turn it into"),
        ("them/a--b", "them/a--b: can't download config.json from {url} (Cannot have -- or .. in repo_id"),
    ],
)
def test_a_repository_that_cant_be_had_is_one_line(source, text, site, machine, theirs):
    site.files["them/empty", "README.md"] = PAGE
    site.files["them/pickle", "config.json"] = (NANO / "config.json").read_bytes()
    site.files["them/pickle", "pytorch_model.bin"] = b"\x80\x04."
    outcome = loaded(machine, source)
    assert text.format(url=site.url) in outcome.error and "\n" not in outcome.error
    assert outcome.err == "" and "pytorch_model.bin" not in [file for _, file in content(site)]


def test_a_token_opens_a_gated_repository(site, machine, nano_loaded):
    add(site, "them/gated")
    assert "accept its terms" in loaded(machine, "them/gated", HF_TOKEN="hf_wrong").error
    assert loaded(machine, "them/gated", HF_TOKEN=site.token).value == (nano_loaded[0], "nano", nano_loaded[2])


@pytest.mark.parametrize(
    "environment, text",
    [
        (OFFLINE, "(HF_HUB_OFFLINE is set, and it is not in {cache})"),
        (NOWHERE, "from http://127.0.0.1:9 ([Errno 111] Connection refused)"),
        ({"HF_ENDPOINT": "http://hub.example"}, "(HF_ENDPOINT must begin with https://)"),
        ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}, "Connection refused"),
    ],
    ids=["offline", "no network", "no https", "no proxy"],
)
def test_without_the_network_it_is_one_line_that_says_what_to_do(environment, text, machine):
    put(machine, REPOSITORY, COMMIT, "vocab.json", VOCABULARY, git_hash(VOCABULARY))
    for source in ("gpt2", "them/small-gpt"):
        outcome = loaded(machine, source, **environment)
        assert text.format(cache=machine.cache) in outcome.error and outcome.err == ""
        assert f"`python -m lab.prefetch --model {source}` where there is a network" in outcome.error
        assert outcome.error.startswith(f"{source}: can't download") and "\n" not in outcome.error


@pytest.mark.parametrize("status", [404, 429, 500])
def test_a_hub_that_refuses_is_one_line(status, site, machine):
    put(machine, REPOSITORY, COMMIT, "vocab.json", VOCABULARY, git_hash(VOCABULARY))
    site.faults["model.safetensors"] = [status] * 99
    outcome = loaded(machine)
    assert str(status) in outcome.error and "\n" not in outcome.error and outcome.err == ""
    assert [path.name for path in machine.blobs(REPOSITORY)] == [git_hash(VOCABULARY)]  # nothing half-written


def test_a_page_of_a_captive_portal_is_no_hub(site, machine):
    outcome = loaded(machine, HF_ENDPOINT=f"{site.url}/portal")
    assert "can't download vocab.json" in outcome.error and "\n" not in outcome.error and outcome.err == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cant_be_written_to_is_one_line(machine):
    (machine.home / "hf").mkdir(mode=0o500)
    assert "Permission denied" in loaded(machine).error


def test_a_file_where_the_cache_should_be_is_one_line(machine):
    (machine.home / "hf").write_text("")
    error = loaded(machine).error
    assert "can't download vocab.json" in error and "\n" not in error


# ---------------------------------------------------------------------- what is pinned


def test_every_pretrained_model_is_pinned_to_a_commit():
    assert PRETRAINED.keys() == SIZES.keys()
    for commit, digest in PRETRAINED.values():
        assert re.fullmatch("[0-9a-f]{40}", commit) and (digest is None or re.fullmatch("[0-9a-f]{64}", digest))


def test_nano_neither_needs_nor_loads_huggingface_hub(machine):
    assert machine.call(without_the_library).value


def without_the_library():
    import sys

    pretrained("nano")
    nano_tokenizer()
    return "huggingface_hub" not in sys.modules
