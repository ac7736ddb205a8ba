"""A Hugging Face Hub on the loopback interface, and processes that have never imported huggingface_hub.

The library reads its environment when it is imported, so each use of it has a process of its own, forked from one that
has imported the project already."""

import hashlib
import io
import json
import multiprocessing
import os
import re
import sys
import threading
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from lab.errors import LabError
from lab.run import hub, pretrained
from lab.run.vocabulary import END, letters

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
WEIGHTS = (pretrained.NANO / "model.safetensors").read_bytes()
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
COMMIT = hub.PRETRAINED["gpt2"].commit
OTHER = "5" * 40  # the commit to which the branches of other repositories point


def vocabulary_json(tokenizer) -> bytes:
    """A tokenizer's vocabulary as a vocab.json."""
    letter, encoding = letters(), tokenizer.encoding
    tokens = {encoding.decode_single_token_bytes(i): i for i in range(tokenizer.n_base - 1)}
    written = {"".join(letter[byte] for byte in token): i for token, i in tokens.items()}
    return json.dumps(written | {END: tokenizer.eos_id}).encode()


VOCABULARY = vocabulary_json(pretrained.nano_tokenizer())


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# ---------------------------------------------------------------------- the server


@dataclass
class Hub:
    """files: (repository, file) -> content; each repository has one commit, and a branch main that points to it.

    faults: file -> what happens to the next requests for its content: a status, or `("cut", bytes)`, or other content.
    log: (method, file) of all requests."""

    url: str = ""
    files: dict[tuple, bytes] = field(default_factory=dict)
    faults: dict[str, list] = field(default_factory=dict)
    log: list[tuple] = field(default_factory=list)
    gated: tuple = ("them/gated",)
    token: str = "hf_right"

    def answer(self, request, method: str) -> None:
        path = request.path.strip("/")
        if moved := re.fullmatch(r"(gpt2[\w-]*)/(resolve/.*)", path):  # the names from before there were owners
            return reply(request, method, 307, {"Location": f"/{hub.OWNER}/{moved[1]}/{moved[2]}"})
        if stored := re.fullmatch(r"cdn/([0-9a-f]{64})/(.+)", path):
            content = next(c for c in self.files.values() if hashlib.sha256(c).hexdigest() == stored[1])
            return self.send(request, method, stored[2], content)
        if not (parts := re.fullmatch(r"([\w.-]+/[\w.-]+)/resolve/([^/]+(?:/pr/\d+)?)/(.+)", path)):
            return reply(request, method, 404)
        repo, revision, file = parts.groups()
        self.log.append((method, file))
        authorised = request.headers["Authorization"] == f"Bearer {self.token}"
        if repo in self.gated and not authorised:
            return reply(request, method, 403, {"X-Error-Code": "GatedRepo"})
        if repo not in {known for known, _ in self.files}:
            return reply(request, method, 401, {"X-Error-Code": "RepoNotFound"})
        commit = hub.PRETRAINED[repo.split("/")[1]].commit if repo.startswith(hub.OWNER) else OTHER
        # what main of OpenAI's models is may change, so nobody may ask for it
        branches = () if repo.startswith(hub.OWNER) else ("main", "refs/pr/1", "refs%2Fpr%2F1")
        if revision not in (commit, *branches):
            return reply(request, method, 404, {"X-Error-Code": "RevisionNotFound"})
        headers, content = {"X-Repo-Commit": commit}, self.files.get((repo, file))
        if content is None:
            return reply(request, method, 404, headers | {"X-Error-Code": "EntryNotFound"})
        if method == "HEAD" and isinstance((self.faults.get(file) or [None])[0], int):
            return reply(request, method, self.faults[file].pop(0), headers)
        if file.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            port = self.url.rsplit(":")[-1]
            headers |= {"Location": f"http://localhost:{port}/cdn/{digest}/{file}"}  # another host, to the library
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return reply(request, method, 302, headers)
        self.send(request, method, file, content, headers | {"ETag": f'"{git_hash(content)}"'})

    def send(self, request, method, file, content, headers=None) -> None:
        fault = self.faults[file].pop(0) if method == "GET" and self.faults.get(file) else None
        if isinstance(fault, int):
            return reply(request, method, fault)
        start = request.headers["Range"]
        first = int(re.match(r"bytes=(\d+)-", start)[1]) if start else 0
        body = (fault if isinstance(fault, bytes) else content)[first:]
        sent = body[: fault[1]] if isinstance(fault, tuple) else body
        if method == "GET":
            self.log.append((f"from {first}", file))
        reply(request, method, 206 if start else 200, headers, sent, len(body))


def reply(request, method, status, headers=None, body=b"", length=None) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    if method == "GET":
        request.wfile.write(body)


@contextmanager
def serve_hub():
    """Yields a running Hub that has gpt2: nano's weights and vocabulary under this name."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.answer(self, "GET")

        def do_HEAD(self):
            site.answer(self, "HEAD")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site = Hub(f"http://127.0.0.1:{server.server_port}")
        site.files[f"{hub.OWNER}/gpt2", "model.safetensors"] = WEIGHTS
        site.files[f"{hub.OWNER}/gpt2", "vocab.json"] = VOCABULARY
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield site
        server.shutdown()


# ---------------------------------------------------------------------- processes


class Outcome(NamedTuple):
    """What a call gave: its value, or the text of its LabError; what it printed."""

    value: object
    error: str
    out: str
    err: str


def patch() -> None:
    """gpt2 has nano's shape, weights and vocabulary. Nothing waits."""
    pretrained.SIZES["gpt2"] = pretrained.read_config(pretrained.NANO / "config.json")
    hub.PRETRAINED["gpt2"] = hub.PRETRAINED["gpt2"]._replace(sha256=DIGEST)
    hub.VOCABULARY_SHA256, hub.VOCABULARY_BLOB = hashlib.sha256(VOCABULARY).hexdigest(), git_hash(VOCABULARY)
    time.sleep = lambda seconds: None


def target(pipe, environment, what, args) -> None:
    for name in [name for name in os.environ if re.match("HF_|HUGGING|TIKTOKEN|XDG|.*proxy", name, re.IGNORECASE)]:
        del os.environ[name]
    os.environ.update(environment)
    assert "huggingface_hub" not in sys.modules
    value, error, out, err = None, "", io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        patch()
        try:
            value = what(*args)
        except LabError as e:
            error = str(e)
    pipe.send(Outcome(value, error, out.getvalue(), err.getvalue()))


class Machine:
    """A computer: its home, and whether it reaches the hub. call(function, *args) runs it in a fresh process there."""

    def __init__(self, home: Path, endpoint: str):
        self.home, self.cache = home, home / "hf" / "hub"
        self.environment = {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint}
        self.environment |= {"TIKTOKEN_CACHE_DIR": str(home / "tiktoken")}

    def call(self, what, *args, **environment) -> Outcome:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["hub_server", "train", "lab.prefetch", "torch._dynamo"])
        there, here = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(here, self.environment | environment, what, args))
        process.start()
        here.close()
        outcome = there.recv()
        process.join()
        return outcome

    def blobs(self, repo: str) -> list[Path]:
        return sorted((self.cache / f"models--{repo.replace('/', '--')}" / "blobs").glob("*"))


def put(machine, repo: str, commit: str, file: str, content: bytes, blob: str, links=True) -> Path:
    """A file as huggingface_hub puts it into its cache."""
    folder = machine.cache / f"models--{repo.replace('/', '--')}"
    path = folder / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if not links:  # as on file systems without them
        path.write_bytes(content)
        return path
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "blobs" / blob).write_bytes(content)
    path.symlink_to(Path("../../blobs") / blob)
    return path
