"""The files of a model on the Hugging Face Hub: found in the hub's cache, or else downloaded into it.

`huggingface_hub` does it, so its environment holds here, too: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE,
HF_TOKEN, proxies. OpenAI's models are pinned to a commit. Any other GPT-2 is called owner/name or owner/name@revision.
A file of a known commit that is in the cache is taken without asking the network. Weights are checked once, by SHA-256.
"""

import os
import re
import warnings
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from lab.errors import ModelFileError, RunError
from lab.files import key_of, read_json, write_json
from lab.tasks.fetch import sha256

DEFAULT_CACHE = "~/.cache/l2kd"
SUFFIX = ".safetensors"
WEIGHTS = "model" + SUFFIX
OWNER = "openai-community"


class Pinned(NamedTuple):
    """A model of OpenAI's: a commit of its repository, and the SHA-256 of its weights, if it is known."""

    commit: str
    sha256: str | None


PRETRAINED = {
    "gpt2": Pinned(
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": Pinned(
        "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
        "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd",
    ),
    "gpt2-large": Pinned("32b71b12589c2f8d625668d2335a01cac3249519", None),
    "gpt2-xl": Pinned(
        "15ea56dee5df4983c59b2538573817e1667135e2",
        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
    ),
}
# All of their repositories hold the same vocab.json, which OpenAI calls encoder.json. The hub names a small file by
# git's hash of it, and a large one by its SHA-256.
VOCABULARY_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
VOCABULARY_BLOB = "1f1d9aaca301414e7f6c9396df506798ff4eb9a6"

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(\S+))?", re.ASCII)  # owner/name or owner/name@revision


def is_name(source: str | Path) -> bool:
    """Does a source name a repository of the hub? A folder of this name goes before it."""
    return isinstance(source, str) and bool(NAME.fullmatch(source)) and not os.path.isdir(source)


def check_source(option: str, source: str) -> None:
    """Raises ValueError, which names the option, for what is no model: no name, no folder, no name on the hub."""
    if not source or source in (*PRETRAINED, "nano") or os.path.isdir(source):
        return
    if not is_name(source):
        known = f"neither {', '.join(PRETRAINED)}, nano, a folder nor owner/name of a model on the hub"
        raise ValueError(f"{option} {source[:200]}: {known}")
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(source.partition("@")[0])
    except HFValidationError as e:
        raise ValueError(f"{option} {source[:200]}: {str(e).splitlines()[0][:200]}") from None


def short(source: str) -> str:
    """A source by its short name: openai-community/gpt2 is gpt2, unless there is such a folder."""
    name = source.removeprefix(f"{OWNER}/")
    return name if name in PRETRAINED and not os.path.isdir(source) else source


def in_names(source: str) -> str:
    """A source in the name of a run: a folder's name and some digits of its path's hash, or a repository's name."""
    if not os.path.isdir(source):
        return source
    path = os.path.abspath(source)
    return f"{os.path.basename(path)}-{key_of(path)[:6]}"


# ---------------------------------------------------------------------- what is asked for


def pinned_weights(name: str, cache_dir: str | Path = DEFAULT_CACHE, why: str = "") -> Path:
    """The weights of one of OpenAI's models. why: the reason for it, which is printed before a download.

    An earlier version of this project, or the user, may have put them into `<cache-dir>/models/<name>/`. Raises
    ModelFileError."""
    pinned = PRETRAINED[name]
    path = Path(cache_dir).expanduser() / "models" / name / WEIGHTS
    if path.is_file():
        return checked(path, pinned.sha256, cache_dir)
    if path := pinned_in_cache(name, WEIGHTS, pinned.sha256):
        return checked(path, pinned.sha256, cache_dir)
    path = required(name, WEIGHTS, download(name, f"{OWNER}/{name}", WEIGHTS, pinned.commit, why))
    return checked(path, pinned.sha256, cache_dir, new=True)


def pinned_vocabulary() -> Path:
    """GPT-2's vocab.json, from whichever of its repositories is in the cache, or else downloaded.

    Raises ModelFileError."""
    for name in PRETRAINED:
        path = pinned_in_cache(name, "vocab.json", VOCABULARY_BLOB)
        if path and sha256(path) == VOCABULARY_SHA256:
            return path
    print("model    GPT-2's vocabulary is downloaded once: vocab.json, 1 MB", flush=True)
    path = required("gpt2", "vocab.json", download("gpt2", f"{OWNER}/gpt2", "vocab.json", PRETRAINED["gpt2"].commit))
    if sha256(path) != VOCABULARY_SHA256:
        delete(path)
        raise ModelFileError(f"gpt2: vocab.json of {endpoint()} is not OpenAI's encoder.json, by its SHA-256; deleted")
    return path


def repository_file(source: str, file: str, cache_dir: str | Path = DEFAULT_CACHE, why: str = "") -> Path | None:
    """A file of the repository owner/name or owner/name@revision, None if it has no such file.

    why: the reason for the model, which is printed before weights are downloaded. Raises ModelFileError."""
    repo, revision = NAME.fullmatch(source).groups()
    commit = commit_of(source, repo, revision or "main")
    found = in_cache(repo, file, commit)
    path = download(source, repo, file, commit, why) if found is None else found or None
    return checked(path, None, cache_dir, new=found is None) if path and file.endswith(SUFFIX) else path


@cache
def commit_of(source: str, repo: str, revision: str) -> str:
    """The commit behind a branch or tag: the hub's answer, or offline the one that the cache remembers."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    return required(source, "config.json", download(source, repo, "config.json", revision)).parent.name


def required(source: str, file: str, path: Path | None) -> Path:
    if path is None:
        raise ModelFileError(f"{source}: the repository has no {file}")
    return path


# ---------------------------------------------------------------------- the cache


def in_cache(repo: str, file: str, commit: str) -> Path | bool | None:
    """A file of a commit: its path in the cache, False if the repository is known not to have it, None if unknown."""
    from huggingface_hub import try_to_load_from_cache  # here and below, so that nano does not wait for it

    found = try_to_load_from_cache(repo, file, revision=commit)
    return Path(found) if isinstance(found, str) else None if found is None else False


def pinned_in_cache(name: str, file: str, blob: str | None) -> Path | None:
    """A file of one of OpenAI's models in the cache: that of the commit, or of any other with this name of a blob.

    A cache that is older than the repositories' owner has them without it."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    for repo in (f"{OWNER}/{name}", name):
        if path := in_cache(repo, file, PRETRAINED[name].commit):
            return path
        blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
        if blob and (blobs / blob).is_file():
            return blobs / blob
    return None


def checked(path: Path, digest: str | None, cache_dir: str | Path, new: bool = False) -> Path:
    """The path of weights that have this SHA-256, or else that by which the cache calls them.

    That is computed once: `<cache-dir>/checked/<digest>.json` remembers the file's place, size and time. Raises
    ModelFileError for another SHA-256; the file is deleted if it is new."""
    if digest is None:
        digest = Path(os.readlink(path)).name if path.is_symlink() else ""
        if not re.fullmatch("[0-9a-f]{64}", digest):
            return path
    note, stat = Path(cache_dir).expanduser() / "checked" / f"{digest}.json", path.stat()
    this = [str(path), stat.st_size, stat.st_mtime_ns]
    with suppress(OSError, RunError):
        if read_json(note) == this:
            return path
    if (seen := sha256(path)) != digest:
        todo = "deleted" if new else f"delete {path.resolve()}"
        if new:
            delete(path)
        raise ModelFileError(f"{path} is broken or changed: its SHA-256 is {seen}, not {digest}; {todo} to try anew")
    with suppress(OSError):  # a folder that can't be written to only costs the time again
        write_json(note, this)
    return path


def delete(path: Path) -> None:
    """Delete a file of the cache: the name in its commit, and the blob behind it."""
    for file in {path.resolve(), path}:
        file.unlink(missing_ok=True)


# ---------------------------------------------------------------------- downloads


def download(source: str, repo: str, file: str, revision: str, why: str = "") -> Path | None:
    """A file of a repository, downloaded into the cache if it is not there yet; None if it has no such file.

    Raises ModelFileError, one line that names the source and says what to do."""
    from huggingface_hub import errors, hf_hub_download

    try:
        with quiet():
            check_endpoint()
            if file.endswith(SUFFIX):
                size = hf_hub_download(repo, file, revision=revision, dry_run=True).file_size or 0
                what = f"{source} ({why})" if why else source
                print(f"model    {what} is downloaded once: {file}, {size / 1e6:.0f} MB", flush=True)
            return Path(hf_hub_download(repo, file, revision=revision))
    except errors.RemoteEntryNotFoundError:
        return None
    except errors.GatedRepoError:
        why = f"gated; accept its terms at {endpoint()}/{repo}, and {LOGIN}"
    except errors.RepositoryNotFoundError:
        why = f"no folder, and no repository of {endpoint()} that you may read; check the name, or {LOGIN}"
    except errors.RevisionNotFoundError:
        why = f"{endpoint()}/{repo} has no revision {revision}"
    except Exception as e:  # the network's, the disk's, and whatever else the library meets
        why = f"can't download {file} from {endpoint()} ({reason(e)}); {HINT.format(source)}"
    raise ModelFileError(f"{source}: {why}")


LOGIN = "log in with `hf auth login` or HF_TOKEN"
HINT = "to work offline, run `python -m lab.prefetch --model {}` where there is a network; --model nano needs nothing"


def reason(e: Exception) -> str:
    """One line about an error of the library's."""
    from huggingface_hub import constants, errors

    if isinstance(e, errors.LocalEntryNotFoundError) and e.__cause__:
        e = e.__cause__
    if isinstance(e, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and it is not in {constants.HF_HUB_CACHE}"
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0] if lines else type(e).__name__


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def check_endpoint() -> None:
    """Raises ValueError for an HF_ENDPOINT without https, unless it is this machine."""
    parts = urlsplit(endpoint())
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        raise ValueError("HF_ENDPOINT must begin with https://")


@contextmanager
def quiet():
    """No warnings of the library's: an error says all of it in one line. HF_HUB_VERBOSITY brings them back."""
    from huggingface_hub import logging

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "HF_HUB_VERBOSITY" not in os.environ:
            logging.set_verbosity_error()
        yield


def is_offline() -> bool:
    """Is HF_HUB_OFFLINE set?"""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()
