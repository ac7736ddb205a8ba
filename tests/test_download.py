"""Downloads, from a server of our own on the loopback interface. python -m pytest tests/test_download.py"""

import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import ssl
import subprocess
import tarfile
import threading
import time
from contextlib import nullcontext, suppress
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback import PAGE, Reply, serve

from lab.errors import DataError
from lab.files import one_at_a_time
from lab.tasks import fetch, load_task
from lab.tasks.__main__ import main
from lab.tasks.classification import CLASSES
from lab.tasks.fetch import SOURCES, download, sha256
from lab.tasks.prepare import prepare
from lab.tasks.reading import SPLITS

CSV = b"".join(b'"%d","A title","Text %d"\n' % (i % 4 + 1, i) for i in range(300))
HALF = len(CSV) // 2


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "WAITS", ())  # one try
    with serve() as site:
        yield site


@pytest.fixture
def ag(site, monkeypatch, tmp_path):
    """AG News from that server, its test file in place already. The returned function sets the replies for the other
    and tries to prepare it; what it gives is the error's text, or None."""
    files = {f"{site.url}/{split}.csv": hashlib.sha256(CSV).hexdigest() for split in SPLITS}
    monkeypatch.setitem(SOURCES, "ag", ("ag_news", files))
    folder = tmp_path / "ag_news"
    folder.mkdir()
    (folder / "test.csv").write_bytes(CSV)

    def attempt(*replies):
        if replies:
            site.replies["/train.csv"] = list(replies)
        try:
            prepare("ag", tmp_path, tmp_path / "cache")
        except DataError as e:
            assert not (folder / "train.csv").exists() and not (tmp_path / "cache").exists()
            return str(e)
        assert (folder / "train.csv").read_bytes() == CSV and not (folder / "train.csv.part").exists()

    return SimpleNamespace(attempt=attempt, log=site.log, part=folder / "train.csv.part", folder=folder, site=site)


def explains(said, ag):
    """An error names the address, the file, the checksum it should have, and what to do offline."""
    assert f"ag: can't download {ag.site.url}/train.csv to {ag.folder / 'train.csv'} (" in said
    assert f"its SHA-256 should be {hashlib.sha256(CSV).hexdigest()}; to work offline, put the file" in said
    assert "--data-dir" in said and "\n" not in said


# ---------------------------------------------------------------------- whole, or cut off


@pytest.mark.parametrize("length", ["right", None, "soon"])
def test_a_whole_file_is_taken_once_and_prepared(ag, tmp_path, capsys, length):
    assert ag.attempt(Reply(CSV, length=length)) is None
    assert f"downloading {ag.site.url}/train.csv to {ag.folder / 'train.csv'}\n" in capsys.readouterr().out
    assert len(load_task("ag", tmp_path, tmp_path / "cache").train) == 300
    assert ag.attempt() is None and ag.log == [("train.csv", None, len(CSV))]  # once
    said = capsys.readouterr().out
    assert "downloading" not in said and "used as found" not in said
    assert sorted(p.name for p in ag.folder.iterdir()) == ["test.csv", "train.csv"]


def test_all_files_of_a_task_are_fetched(site, monkeypatch, tmp_path):
    files = {f"{site.url}/{split}.csv": hashlib.sha256(CSV).hexdigest() for split in SPLITS}
    monkeypatch.setitem(SOURCES, "ag", ("ag_news", files))
    site.replies = {f"/{split}.csv": [Reply(CSV)] for split in SPLITS}
    assert len(load_task("ag", tmp_path / "new" / "raw", tmp_path / "cache").test) == 300
    assert [path for path, *_ in site.log] == ["train.csv", "test.csv"]


def test_an_interrupted_download_continues_where_it_stopped(ag, capsys):
    said = ag.attempt(Reply(CSV, cut=HALF))
    explains(said, ag)
    assert f"cut off: {HALF} of {len(CSV)} bytes; the next try goes on from there" in said
    assert ag.part.read_bytes() == CSV[:HALF]
    assert ag.attempt(Reply(CSV, cut=100)) and ag.part.read_bytes() == CSV[: HALF + 100]  # and stopped again
    assert ag.attempt(Reply(CSV)) is None
    assert ag.log[1:] == [
        ("train.csv", f"bytes={HALF}-", 100),
        ("train.csv", f"bytes={HALF + 100}-", len(CSV) - HALF - 100),
    ]
    assert f"train.csv, from byte {HALF} on" in capsys.readouterr().out


def test_control_c_keeps_what_has_come(site, monkeypatch, tmp_path, capsys):
    body = b"x" * 2**20 + b"rest"
    url = f"{site.url}/woz_train_en.json"
    monkeypatch.setitem(SOURCES, "woz", ("woz", {url: hashlib.sha256(body).hexdigest()}))
    site.replies["/woz_train_en.json"] = [Reply(body)]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(fetch.tqdm, "update", stop)
        assert main(["woz", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]) == 130
    have = (tmp_path / "woz" / "woz_train_en.json.part").stat().st_size
    assert have and capsys.readouterr().err == "interrupted: the next try goes on from there\n"
    download(url, tmp_path / "woz" / "woz_train_en.json", hashlib.sha256(body).hexdigest())
    assert site.log[1] == ("woz_train_en.json", f"bytes={have}-", len(body) - have)
    assert (tmp_path / "woz" / "woz_train_en.json").read_bytes() == body


def test_a_server_without_ranges_makes_it_start_again(ag):
    assert ag.attempt(Reply(CSV, cut=HALF))
    assert ag.attempt(Reply(CSV, ranges=False)) is None
    assert ag.log[1] == ("train.csv", f"bytes={HALF}-", len(CSV))


def test_a_file_cut_off_without_a_length_is_refused(ag):
    explains(ag.attempt(Reply(CSV, cut=HALF, length=None)), ag)
    assert ag.attempt(Reply(CSV)) is None


def test_a_part_that_is_whole_already_is_taken(ag):
    ag.part.write_bytes(CSV)
    assert ag.attempt(Reply(CSV)) is None and ag.log == [("train.csv", f"bytes={len(CSV)}-", 0)]  # 416


@pytest.mark.parametrize("part", [b"x" * 10, CSV[:-10] + b"y" * 10, CSV + b"more", b"z" * 2 * len(CSV)])
def test_a_part_of_something_else_is_thrown_away(ag, part):
    ag.part.write_bytes(part)
    said = ag.attempt(Reply(CSV))
    explains(said, ag)
    assert "broken or changed: its SHA-256 is" in said and not ag.part.exists()
    assert ag.attempt() is None and ag.log[-1] == ("train.csv", None, len(CSV))


def test_two_that_want_it_at_once_fetch_it_once(site, tmp_path, capsys):
    site.replies["/train.csv"] = [Reply(CSV, wait=0.2)]
    path, digest = tmp_path / "ag_news" / "train.csv", hashlib.sha256(CSV).hexdigest()
    both = [threading.Thread(target=download, args=(f"{site.url}/train.csv", path, digest)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(10)
    assert len(site.log) == 1 and path.read_bytes() == CSV
    assert list(path.parent.iterdir()) == [path]
    assert f"waiting  for {path}, which another process is making\n" in capsys.readouterr().out


def test_one_is_inside_at_a_time_though_the_lock_file_is_deleted_and_made_anew(tmp_path):
    inside, most = [], []

    def work(fails):
        with suppress(InterruptedError), one_at_a_time(tmp_path / "x"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
            if fails:
                raise InterruptedError

    threads = [threading.Thread(target=work, args=[i % 2]) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1] * 12 and not list(tmp_path.iterdir())


def test_a_lock_file_that_a_killed_process_has_left_is_no_lock(ag):
    ag.part.with_name(".train.csv.lock").touch()
    assert ag.attempt(Reply(CSV)) is None


# ---------------------------------------------------------------------- busy servers, broken connections

BUSY, TOO_MANY = Reply(b"", status=503), Reply(b"", status=429, headers={"Retry-After": "0"})


@pytest.fixture
def patient(monkeypatch):
    """Three more tries, with waits that take no time. Returns the seconds of each."""
    waits = []
    monkeypatch.setattr(fetch, "WAITS", (1, 5, 25))
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=waits.append, time=time.time))
    return waits


@pytest.mark.parametrize(
    "replies, waits",
    [
        ([BUSY, Reply(CSV)], [1]),
        ([TOO_MANY, BUSY, Reply(b"", status=500), Reply(CSV)], [1, 5, 25]),
        ([Reply(b"", status=429, headers={"Retry-After": "7"}), Reply(CSV)], [7]),
        ([Reply(CSV, cut=100), Reply(CSV, cut=100), Reply(CSV)], [1, 5]),
        ([Reply(CSV, cut=HALF), BUSY, Reply(CSV)], [1, 5]),
        ([Reply(CSV, cut=HALF, reset=True), Reply(CSV, cut=100, reset=True), Reply(CSV)], [1, 5]),
        ([Reply(CSV, cut=0, reset=True), Reply(CSV)], [1]),
        ([Reply(b"", status=503, headers={"Retry-After": "soon"}), Reply(CSV)], [1]),
        ([Reply(b"", status=503, headers={"Retry-After": "-3"}), Reply(CSV)], [1]),
        ([Reply(b"", status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), Reply(CSV)], [1]),
    ],
)
def test_a_busy_server_or_a_broken_connection_is_tried_again(ag, patient, replies, waits):
    assert ag.attempt(*replies) is None and patient == waits
    got = sum(n for _, _, n in ag.log)
    assert got == len(CSV)  # what has come is kept, and not asked for again


OLD = b"#" * HALF + CSV[HALF:]  # of the same length


@pytest.mark.parametrize(
    "old, new",
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT"}, {"Last-Modified": "Wed, 25 Nov 2026 10:00:00 GMT"}),
        ({"ETag": 'W/"1"', "Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT"}, {"ETag": 'W/"1"'}),
    ],
)
def test_a_file_that_has_changed_between_two_tries_is_taken_from_its_beginning(ag, patient, old, new):
    same = Reply(CSV, cut=HALF, headers=old), Reply(CSV, headers=old)
    assert ag.attempt(Reply(OLD, cut=HALF, headers=old), Reply(CSV, headers=new)) is None
    assert [sent for _, _, sent in ag.log] == [HALF, len(CSV)]
    (ag.folder / "train.csv").unlink()
    assert ag.attempt(*same) is None and [sent for _, _, sent in ag.log[2:]] == [HALF, len(CSV) - HALF]


def test_a_server_that_does_not_know_ranges_is_tried_again_from_the_beginning(ag, patient):
    assert ag.attempt(Reply(CSV, cut=HALF), Reply(CSV, ranges=False)) is None and patient == [1]
    assert [sent for _, _, sent in ag.log] == [HALF, len(CSV)]


def test_a_date_is_waited_for(ag, patient):
    date = formatdate(time.time() + 40, usegmt=True)
    assert ag.attempt(Reply(b"", status=503, headers={"Retry-After": date}), Reply(CSV)) is None
    assert 30 < patient[0] <= 40


@pytest.mark.parametrize(
    "reply, tries",
    [
        (BUSY, 4),
        (Reply(CSV, cut=0), 4),
        (Reply(CSV, cut=100), 4),
        (Reply(CSV, cut=HALF, ranges=False), 4),  # some bytes come each time
        (Reply(b"", status=403), 1),  # asking again would not help
        (Reply(b"", status=404), 1),
        (Reply(b"", status=429, headers={"Retry-After": "3600"}), 1),
    ],
)
def test_tries_end(ag, patient, reply, tries):
    explains(ag.attempt(reply), ag)
    assert len(ag.log) == tries == len(patient) + 1


def test_control_c_while_waiting_ends_at_once_and_keeps_what_has_come(ag, monkeypatch, patient):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.time, "sleep", stop)  # of this module alone, see `patient`
    with pytest.raises(KeyboardInterrupt):
        ag.attempt(Reply(CSV, cut=HALF))
    assert ag.part.read_bytes() == CSV[:HALF] and len(ag.log) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(ag, monkeypatch, capsys, tmp_path, number):
    def no_locks(*_):
        raise OSError(number, "not here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert main(["ag", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]) == 1
    said = capsys.readouterr().err
    assert "this file system has no locks (not here); use a folder on another one" in said and said.count("\n") == 1
    assert "name its folder with --data-dir" in said


@pytest.mark.parametrize(
    "step, number", [("os.replace", errno.ENOSPC), ("lab.tasks.fetch.sync", errno.EIO), ("os.mkdir", errno.EROFS)]
)
def test_a_folder_that_can_not_be_written_to_is_one_line_and_nothing_is_lost(site, monkeypatch, tmp_path, step, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    site.replies["/x.csv"] = [Reply(CSV)]
    files = {f"{site.url}/x.csv": hashlib.sha256(CSV).hexdigest()}
    monkeypatch.setitem(SOURCES, "ag", ("ag_news", files))
    path = tmp_path / "ag_news" / "x.csv"
    with monkeypatch.context() as m:
        m.setattr(step, fail)
        with pytest.raises(DataError, match=f"can't download .*/x.csv to {path} .*{os.strerror(number)}.*--data-dir"):
            fetch.raw_file("ag", path.parent, "x.csv")
    assert not path.exists() and fetch.raw_file("ag", path.parent, "x.csv").read_bytes() == CSV
    assert sum(sent for _, _, sent in site.log) == len(CSV)  # what has come is not asked for again


# ---------------------------------------------------------------------- proxies and certificates


def test_a_proxy_of_the_environment_is_used(site, monkeypatch, tmp_path):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", site.url)
    url = "http://elsewhere.invalid/x.csv"
    site.replies[url] = [Reply(CSV)]
    download(url, tmp_path / "x.csv", hashlib.sha256(CSV).hexdigest())
    assert (tmp_path / "x.csv").read_bytes() == CSV and site.log[0][0] == url


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the command openssl, to make a certificate")
def test_certificates_of_the_users_own_are_trusted(monkeypatch, tmp_path):
    key, bundle, digest = tmp_path / "key.pem", tmp_path / "ca.pem", hashlib.sha256(CSV).hexdigest()
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {bundle}"
    subprocess.run(command.split(), check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(bundle, key)
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    for name in (*names, "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    with serve(tls) as site:
        site.replies["/x.csv"] = [Reply(CSV)]
        for name in names:
            with monkeypatch.context() as m:
                m.setenv(name, str(bundle))
                download(f"{site.url}/x.csv", tmp_path / name, digest)
        with pytest.raises(OSError, match="certificate verify failed"):
            download(f"{site.url}/x.csv", tmp_path / "none", digest)
        monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path / "missing.pem"))
        with pytest.raises(DataError, match=r"CURL_CA_BUNDLE: .*missing.pem: No such file"):
            download(f"{site.url}/x.csv", tmp_path / "none", digest)


# ---------------------------------------------------------------------- CNN/DailyMail without its archives


@pytest.fixture
def cnn(site, monkeypatch, tmp_path, capsys):
    """Its lists are there. The returned function sets the reply for each archive; what it gives is the error."""
    files = {f"{site.url}/{Path(url).name}": digest for url, digest in SOURCES["cnn"][1].items()}
    monkeypatch.setitem(SOURCES, "cnn", ("cnn_dailymail", files))
    (tmp_path / "cnn_dailymail").mkdir()
    for split in SPLITS:
        (tmp_path / "cnn_dailymail" / f"all_{split}.txt").write_text("http://a/1\n")

    def attempt(reply):
        site.replies = {f"/{Path(url).name}": [reply] for url in files}
        assert main(["cnn", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]) == 1
        return capsys.readouterr().err

    return attempt


@pytest.mark.parametrize("reply", [Reply(b"", status=503), Reply(PAGE, type="text/html"), Reply(b"x"), Reply(b"")])
def test_archives_that_may_come_another_time_need_no_recipe(cnn, reply):
    assert cnn(reply).count("\n") == 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_if_they_are_gone_the_lines_are_shown_that_make_the_csv_files(cnn, status, monkeypatch, tmp_path):
    """The lines run, on a stand-in for the data set, and make the files that are read next."""
    said = cnn(Reply(b"", status=status)).splitlines()
    assert len(said) == 5 and str(status) in said[0] and "`pip install datasets`" in said[1]
    rows = [{"article": 'An "article", by {me} .', "highlights": "One .\nTwo .", "id": "x"}]
    split = pytest.importorskip("datasets").Dataset.from_list(rows)

    def load_dataset(*names):
        assert names == ("abisee/cnn_dailymail", "3.0.0")
        return {"train": split, "test": split, "validation": split}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    exec("\n".join(said[2:]), {})
    (example,) = load_task("cnn", tmp_path, tmp_path / "cache").test
    assert (example.context, example.answer, example.id) == ('An "article", by {me} .', "One . Two .", "x")


# ---------------------------------------------------------------------- wrong


def test_corrupted_bytes_leave_nothing_and_the_next_try_starts_anew(ag):
    wrong = CSV.replace(b"Text 7\n", b"Text 8\n").replace(b"title", b"Title", 1)
    said = ag.attempt(Reply(wrong))
    explains(said, ag)
    assert f"broken or changed: its SHA-256 is {hashlib.sha256(wrong).hexdigest()}" in said and not ag.part.exists()
    assert ag.attempt(Reply(CSV)) is None and ag.log[-1] == ("train.csv", None, len(CSV))


@pytest.mark.parametrize(
    "reply, says",
    [
        (Reply(PAGE, type="text/html; charset=utf-8"), "a web page came in place of the file"),
        (Reply(PAGE, type="application/xhtml+xml"), "a web page came in place of the file"),
        (Reply(PAGE), "broken or changed"),
        (Reply(PAGE, type="text/html", status=404), "404"),
        (Reply(b"", status=503), "503"),
        (Reply(b""), "an empty file came"),
        (Reply(b"", length=None), "an empty file came"),
    ],
)
def test_an_answer_that_is_not_the_file_leaves_nothing(ag, reply, says):
    said = ag.attempt(reply)
    explains(said, ag)
    assert says in said and [p.name for p in ag.folder.iterdir()] == ["test.csv"]


@pytest.mark.parametrize("status", [200, 404])
def test_a_web_page_does_not_spoil_what_has_come_before(ag, status):
    assert ag.attempt(Reply(CSV, cut=HALF))
    assert ag.attempt(Reply(PAGE, type="text/html", ranges=False, status=status)) and ag.part.read_bytes() == CSV[:HALF]
    assert ag.attempt(Reply(CSV)) is None and ag.log[-1][2] == len(CSV) - HALF


def test_a_server_that_is_not_there_is_one_line(site, monkeypatch, tmp_path, capsys):
    urls = {f"http://127.0.0.1:9/woz_{split}_en.json": "0" * 64 for split in SPLITS}
    monkeypatch.setitem(SOURCES, "woz", ("woz", urls))
    assert main(["woz", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: woz: can't download http://127.0.0.1:9/woz_train_en.json") and said.count("\n") == 1
    assert not list((tmp_path / "woz").iterdir())


def test_https_does_not_turn_into_http_on_the_way(monkeypatch, tmp_path):
    reply = SimpleNamespace(url="http://elsewhere/x", headers={}, status=200, length=None, read=lambda _: b"")
    monkeypatch.setattr(fetch, "urlopen", lambda *_, **__: nullcontext(reply))
    with pytest.raises(DataError, match="sent on to http://elsewhere/x, which is not https"):
        download("https://here/x", tmp_path / "x", "0" * 64)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- an archive without a known checksum


def tgz(names):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name in names:
            info, text = tarfile.TarInfo(name), b'"1","A title","A text"\n'
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return raw.getvalue()


@pytest.fixture
def amazon(site, monkeypatch, tmp_path):
    def attempt(reply, size=None):
        url = f"{site.url}/amazon_review_full_csv.tgz"
        monkeypatch.setitem(SOURCES, "amazon", ("amazon", {url: len(reply.body) if size is None else size}))
        site.replies["/amazon_review_full_csv.tgz"] = [reply]
        return load_task("amazon", tmp_path, tmp_path / "cache")

    return attempt


FOLDER = "amazon_review_full_csv"
WHOLE = tgz([f"{FOLDER}/train.csv", f"{FOLDER}/test.csv", f"{FOLDER}/readme.txt"])


def test_without_a_known_checksum_the_one_that_was_seen_is_printed(amazon, tmp_path, capsys):
    assert [e.answer for e in amazon(Reply(WHOLE)).train] == ["very negative"]
    said = capsys.readouterr().out
    assert f"no checksum is known for it; its SHA-256 is {hashlib.sha256(WHOLE).hexdigest()}" in said
    assert "used as found" not in said
    assert [p.name for p in (tmp_path / "amazon").iterdir()] == [f"{FOLDER}.tgz"]
    amazon(Reply(PAGE))
    assert "SHA-256" not in capsys.readouterr().out  # it is there


@pytest.mark.parametrize(
    "body, says",
    [
        (WHOLE[: len(WHOLE) // 2], "not a whole archive"),
        (WHOLE[:-8], "not a whole archive"),
        (WHOLE[:-6] + b"\0" + WHOLE[-5:], "not a whole archive"),
        (gzip.compress(gzip.decompress(WHOLE)[:700]), "not a whole archive"),
        (tgz([f"{FOLDER}/train.csv"]), "holds no train.csv and test.csv"),
        (tgz(["a/b.csv"]), "holds no train.csv and test.csv"),
        (tgz([]), "holds no train.csv and test.csv"),
        (gzip.compress(b"x" * 5000), "not a whole archive"),
        (PAGE, "not a whole archive"),
        (b"", "an empty file came"),
    ],
    ids=range(10),  # the bodies hold the time: as names they would differ between processes
)
def test_without_a_known_checksum_what_is_not_the_archive_is_refused(amazon, tmp_path, body, says):
    with pytest.raises(DataError, match=rf"amazon: can't download .*{says}.*it should have {len(body)} bytes"):
        amazon(Reply(body))
    assert not list((tmp_path / "amazon").iterdir()) and not (tmp_path / "cache").exists()
    assert len(amazon(Reply(WHOLE)).test) == 1


def test_without_a_known_checksum_the_size_is_compared(amazon, tmp_path):
    with pytest.raises(DataError, match=rf"it has {len(WHOLE)} bytes; deleted.*it should have {len(WHOLE) + 1} bytes"):
        amazon(Reply(WHOLE), len(WHOLE) + 1)
    assert not list((tmp_path / "amazon").iterdir())


# ---------------------------------------------------------------------- the pinned addresses and checksums


def test_pinned_addresses_and_checksums_are_those_of_the_known_public_files(shared):
    def known(source):
        url = source["url"].replace("datasets/cnn_dailymail/", "datasets/abisee/cnn_dailymail/")  # its owner since 2024
        return {url: source["sha256"] or 643_695_014}

    sources = json.loads((shared / "paper" / "sources.json").read_text(encoding="utf-8"))
    cnn, e2e, news = sources["cnn_dailymail"], sources["e2e"], sources["ag_news"]
    assert SOURCES["sql"][1] == known(sources["wikisql"])
    assert SOURCES["cnn"][1] == {u: s for x in [*cnn["lists"].values(), *cnn["stories"]] for u, s in known(x).items()}
    assert SOURCES["e2e"][1] == known(e2e["train"]) | known(e2e["test"])
    assert SOURCES["ag"][1] == known(news["train"]) | known(news["test"])
    for task in ("yelp", "amazon", "dbpedia", "yahoo"):
        assert SOURCES[task][1] == known(sources[task])
    for task, name in (("ag", "ag_news"), ("dbpedia", "dbpedia"), ("yahoo", "yahoo")):
        assert list(CLASSES[task]) == sources[name]["classes"]


def test_pinned_checksums_are_those_of_the_data_packs_files(shared):
    for task in ("woz", "e2e", "rnnlg.rest", "rnnlg.hotel", "rnnlg.tv", "rnnlg.laptop"):
        folder, files = SOURCES[task]
        assert {sha256(shared / "data" / folder / Path(url).name) for url in files} == set(files.values())
    assert sha256(shared / "data/ag_news/public_test.csv") in SOURCES["ag"][1].values()


def test_every_task_has_its_own_place_and_is_fetched_over_https():
    assert len(SOURCES) == len({folder for folder, _ in SOURCES.values()}) == 13
    for task, (_, files) in SOURCES.items():
        assert len({Path(url).name for url in files}) == len(files), task
        for url, digest in files.items():
            assert url.startswith("https://") and (task == "amazon" or re.fullmatch("[0-9a-f]{64}", digest))
