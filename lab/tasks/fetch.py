"""Raw files: where the public ones are, their checksums, and how one is downloaded once and checked."""

import hashlib
import os
import ssl
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import certifi
from tqdm import tqdm

from lab.errors import DataError, LabError
from lab.files import one_at_a_time, sync
from lab.tasks.archives import tar_stream

RAW = "https://raw.githubusercontent.com"
WOZ_URL = f"{RAW}/nmrksic/neural-belief-tracker/master/data/woz"
CNN_LISTS = f"{RAW}/abisee/cnn-dailymail/master/url_lists"
CNN_STORIES = (
    "https://huggingface.co/datasets/abisee/cnn_dailymail/resolve/11343c3752184397d56efc19a8a7cceb68089318/data"
)
E2E_URL = f"{RAW}/tuetschek/e2e-dataset/master"
RNNLG_URL = f"{RAW}/shawnwun/RNNLG/master/data/original"
AG_URL = f"{RAW}/mhjabreel/CharCnn_Keras/master/data/ag_news_csv"
FAST_AI = "https://s3.amazonaws.com/fast-ai-nlp"

# task -> its folder in the data directory, and what to download into it: address -> SHA-256, or the size in bytes of an
# archive of which no SHA-256 is known
SOURCES = {
    "woz": (
        "woz",
        {
            f"{WOZ_URL}/woz_train_en.json": "7cd9e971553e5f3e80bb0c93164bf4c619c7f49f45d636a0512474cdeb074485",
            f"{WOZ_URL}/woz_test_en.json": "3673e433b21a6b0d74e9144bd059e64b29bc3e1c5dc0e18654a98ec597c0d72c",
        },
    ),
    "sql": (
        "wikisql",
        {
            "https://github.com/salesforce/WikiSQL/raw/master/data.tar.bz2": (
                "755c728ab188e364575705c8641f3fafd86fb089cb8b08e8c03f01832aae0881"
            ),
        },
    ),
    "cnn": (
        "cnn_dailymail",
        {
            f"{CNN_LISTS}/all_train.txt": "a5cee49f3a6c862c26ce29308236d2a99625ab6c86a43be22d5206b2790d8029",
            f"{CNN_LISTS}/all_test.txt": "c4f5efb5ec2126430a5c156efbd13d0e9c4cb490169e552c38b4a51981a009bd",
            f"{CNN_STORIES}/cnn_stories.tgz": "e8fbc0027e54e0a916abd9c969eb35f708ed1467d7ef4e3b17a56739d65cb200",
            f"{CNN_STORIES}/dailymail_stories.tgz": "ad69010002210b7c406718248ee66e65868b9f6820f163aa966369878d14147e",
        },
    ),
    "e2e": (
        "e2e",
        {
            f"{E2E_URL}/trainset.csv": "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6",
            f"{E2E_URL}/testset_w_refs.csv": "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd",
        },
    ),
    "rnnlg.rest": (
        "rnnlg/restaurant",
        {
            f"{RNNLG_URL}/restaurant/train.json": "c59ea956404dc4512a430a06c48412a9bde72c30bd92a78e649312c9075f2fca",
            f"{RNNLG_URL}/restaurant/test.json": "e52a84edf121d46a0cbfec66a211f24ccc3e2dd4043317639200904a206c3f9b",
        },
    ),
    "rnnlg.hotel": (
        "rnnlg/hotel",
        {
            f"{RNNLG_URL}/hotel/train.json": "f933b294fcd32d401602abb39d22bc6a360946672132c2b2079e95ccc2e46f9d",
            f"{RNNLG_URL}/hotel/test.json": "4d0b6dc1da1efd4aabec39a45815aac5f0251c636a6a4a7a51cc2f70cec819b3",
        },
    ),
    "rnnlg.tv": (
        "rnnlg/tv",
        {
            f"{RNNLG_URL}/tv/train.json": "61f102e332eaba7ffff6f084b4a8029dee41a85238f26a3361221879ba411ded",
            f"{RNNLG_URL}/tv/test.json": "06cc6aeef5062c3459c68d7a866b79b2579e1f24b1be52f1bde44767cedd3b00",
        },
    ),
    "rnnlg.laptop": (
        "rnnlg/laptop",
        {
            f"{RNNLG_URL}/laptop/train.json": "4e715edeb1a4f70c859b681f18e1798b92d82ca685d65cfaf25c467243b5f409",
            f"{RNNLG_URL}/laptop/test.json": "787237205d301f574d3642e76766f4b6a5d91851a17d0faaf0b68c52daa9944b",
        },
    ),
    "ag": (
        "ag_news",
        {
            f"{AG_URL}/train.csv": "76a0a2d2f92b286371fe4d4044640910a04a803fdd2538e0f3f29a5c6f6b672e",
            f"{AG_URL}/test.csv": "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
        },
    ),
    "yelp": (
        "yelp",
        {
            f"{FAST_AI}/yelp_review_full_csv.tgz": "56006b0a17a370f1e366504b1f2c3e3754e4a3dda17d3e718a885c552869a559",
        },
    ),
    "amazon": ("amazon", {f"{FAST_AI}/amazon_review_full_csv.tgz": 643_695_014}),
    "dbpedia": (
        "dbpedia",
        {
            f"{FAST_AI}/dbpedia_csv.tgz": "42db5221ddedddb673a4cabcc5f3a7d869714c878bcfe4ba94b29d14aa38e417",
        },
    ),
    "yahoo": (
        "yahoo",
        {
            f"{FAST_AI}/yahoo_answers_csv.tgz": "2d4277855faf8b35259009425fa8f7fe1888b5644b47165508942d000f4c96ae",
        },
    ),
}

# ---------------------------------------------------------------------- the user's own files, or downloads


def local_files(folder: Path, names: list[str]) -> list[Path] | None:
    """All of the named files, or None if none is there. Raises DataError if only some are."""
    paths = [folder / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing and len(missing) < len(paths):
        raise DataError(f"{missing[0]} is missing, but {next(p for p in paths if p not in missing)} is there")
    return None if missing else paths


def raw_file(task: str, folder: Path, name: str, instead: str = "") -> Path:
    """A raw file: the user's own unchanged, or else downloaded and checked.

    Raises DataError. It ends with the lines `instead` if the server does not have the file any more."""
    url, known = next((url, known) for url, known in SOURCES[task][1].items() if Path(url).name == name)
    path = folder / name
    if not path.is_file():
        try:
            download(url, path, known)
        except (OSError, HTTPException, LabError) as e:
            wanted = f"its SHA-256 should be {known}" if isinstance(known, str) else f"it should have {known} bytes"
            hint = f"to work offline, put the file at {path} yourself, or name its folder with --data-dir"
            gone = f"\n{instead}" if instead and isinstance(e, HTTPError) and e.code in GONE else ""
            raise DataError(f"{task}: can't download {url} to {path} ({e}); {wanted}; {hint}{gone}") from None
    return path


def download(url: str, path: Path, known: str | int) -> None:
    """Fetch url to path, which only a whole file with the right SHA-256 ever becomes.

    known: the SHA-256, or the size of an archive, which is then read through. An interrupted download leaves
    `<path>.part`, and the next try continues it. Raises LabError, OSError, HTTPException."""
    part = path.with_name(path.name + ".part")
    with one_at_a_time(path):
        if path.is_file():  # another process has fetched it while this one waited
            part.unlink(missing_ok=True)
            return
        receive(url, path, part)
        sync(part)
        try:
            check_download(part, known)
        except DataError:
            part.unlink()
            raise
        os.replace(part, path)


WAITS = (1, 5, 25)  # seconds before each further try, where a server is busy or a connection breaks ...
LONGEST_WAIT = 120  # ... or as many as the server asks for, up to this
GONE = (401, 403, 404, 410, 451)  # how servers say that they do not have a file, or not for you


class CutOff(DataError):
    """Fewer bytes came than were promised."""


def receive(url: str, path: Path, part: Path) -> None:
    """Append to `part` what it still lacks of url, in several tries if need be. `path` is only printed.

    Raises DataError if what came is cut off, or not a file; OSError, HTTPException."""
    version = {}
    for wait in (*WAITS, None):
        try:
            return receive_once(url, path, part, version)
        except (HTTPError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError, CutOff) as e:
            asked = seconds_asked_for(e) if isinstance(e, HTTPError) else 0
            refused = isinstance(e, HTTPError) and e.code != 429 and e.code < 500
            if wait is None or refused or asked > LONGEST_WAIT:
                raise
            print(f"waiting  {max(wait, asked):.0f} s before another try ({str(e) or type(e).__name__})", flush=True)
            time.sleep(max(wait, asked))


def seconds_asked_for(e: HTTPError) -> float:
    """An answer's Retry-After, which is a number of seconds or a date, as seconds from now; 0 if it has none."""
    text = e.headers.get("Retry-After", "").strip()
    try:
        return float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except ValueError:
        return 0


def receive_once(url: str, path: Path, part: Path, version: dict[str, str]) -> None:
    """One try. `part` is deleted if it has no byte.

    version: a header that names the version of the file which `part` is of, as the try before has left it here, or {}.
    If the file has changed, the server starts at its beginning."""
    try:
        with open(part, "ab") as f:
            have = f.seek(0, os.SEEK_END)
            print(f"downloading {url} to {path}{f', from byte {have} on' if have else ''}", flush=True)
            headers = {"User-Agent": "l2kd"} | ({"Range": f"bytes={have}-"} | version if have else {})
            with urlopen(Request(url, headers=headers), timeout=60, context=certificates()) as reply:
                if url.startswith("https:") and not reply.url.startswith("https:"):
                    raise DataError(f"sent on to {reply.url}, which is not https")
                if "html" in reply.headers.get("Content-Type", ""):
                    raise DataError("a web page came in place of the file; a log-in or an error page?")
                if reply.status != 206:  # the server starts at the beginning
                    f.truncate(have := 0)
                etag, date = reply.headers.get("ETag", "W/"), reply.headers.get("Last-Modified")
                if name := date if etag.startswith("W/") else etag:  # W/: it may be the same for other bytes
                    version["If-Range"] = name
                total = -1 if reply.length is None else have + reply.length  # None: the server doesn't say
                with tqdm(total=max(total, 0) or None, initial=have, unit="B", unit_scale=True, disable=None) as bar:
                    while chunk := reply.read1(2**20):  # what has come, even if the connection breaks next
                        f.write(chunk)
                        bar.update(len(chunk))
        size = part.stat().st_size
        if -1 < total != size:
            raise CutOff(f"cut off: {size} of {total} bytes; the next try goes on from there")
        if not size:
            raise DataError("an empty file came")
    except HTTPError as e:
        if not (have and e.code == 416):  # 416: nothing follows what we have, so it is whole or wrong
            raise
    finally:
        if part.is_file() and not part.stat().st_size:
            part.unlink()


def certificates() -> ssl.SSLContext:
    """Who is trusted: the system's or SSL_CERT_FILE's authorities, and certifi's or those of REQUESTS_CA_BUNDLE."""
    context = ssl.create_default_context()
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where()
    try:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    except OSError as e:
        raise DataError(f"REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE: {bundle}: {e.strerror or e}") from None
    return context


def check_download(path: Path, known: str | int) -> None:
    """Raises DataError for another SHA-256 or, where none is known, for another size or if it lacks its files."""
    if isinstance(known, int):
        if (size := path.stat().st_size) != known:
            raise DataError(f"broken or changed: it has {size} bytes; deleted, the next try starts anew")
        with tar_stream(path) as tar:
            names = {Path(member.name).name for member in tar}
        if not {"train.csv", "test.csv"} <= names:
            raise DataError("the archive holds no train.csv and test.csv")
        print(f"no checksum is known for it; its SHA-256 is {sha256(path)}")
    elif (seen := sha256(path)) != known:
        raise DataError(f"broken or changed: its SHA-256 is {seen}; deleted, the next try starts anew")


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
