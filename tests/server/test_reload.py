"""An index that is built anew under a running server: the newest whole version is searched."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from command_line import start
from flashback.corpus.documents import CorpusReport
from flashback.retrieval.fusion import FusedRetriever
from flashback.retrieval.index_folder import MANIFEST
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.kinds import open_index
from flashback.retrieval.live import LiveIndex, LiveRetriever, live
from flashback.retrieval.protocol import Hit, Renewable, Retriever
from flashback.retrieval.rerank import RerankedRetriever
from flashback.server.index_watch import IndexWatch
from flashback.settings import SearchOptions
from servers import (
    MINUTES,
    ForcedEngine,
    QueryRetriever,
    Served,
    chat_reader,
    serving,
    until,
)

ON_REQUEST: dict[str, Any] = {"reload_every": 0.0}


def build(folder: Path, word: str, documents: int = 3) -> Path:
    """An index whose passages all have a word, and `tide`, in them; an old one is replaced."""
    corpus = folder.with_suffix(".jsonl")
    texts = [f"tide number {number} is {word}" for number in range(documents)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    index_corpus(corpus, folder, report=CorpusReport(), overwrite=True)
    return folder


def found(served: Served, query: str = "tide") -> list[str]:
    """The texts that a search gives."""
    with served.http() as http:
        answer = http.post("/v1/retrieve", json={"queries": [query], "passages": 5})
    assert answer.status_code == 200, answer.text
    return [passage["text"] for passage in answer.json()["results"][0]["passages"]]


def words(served: Served) -> set[str]:
    """The last words of what a search finds."""
    return {text.split()[-1] for text in found(served)}


def state(served: Served) -> Any:
    with served.http() as http:
        answer = http.get("/health")
    assert answer.status_code == 200
    return answer.json()["index"]


def reload(served: Served) -> httpx2.Response:
    with served.http() as http:
        return http.post("/v1/reload")


def moved_in_place(folder: Path) -> None:
    other = build(folder.with_name("OTHER"), "new")
    shutil.rmtree(folder)
    other.rename(folder)


def copied_over(folder: Path) -> None:
    other = build(folder.with_name("OTHER"), "new")
    shutil.copytree(other, folder, dirs_exist_ok=True)


def copied_manifest_first(folder: Path) -> None:
    other = build(folder.with_name("OTHER"), "new")
    shutil.copy(other / MANIFEST, folder / MANIFEST)
    shutil.copytree(other, folder, dirs_exist_ok=True)


def link_turned(folder: Path) -> None:
    other = build(folder.with_name("OTHER"), "new")
    shutil.rmtree(folder)
    folder.symlink_to(other)


REPLACED: list[Callable[[Path], object]] = [
    lambda folder: build(folder, "new"),
    lambda folder: build(folder, "new", documents=1),
    lambda folder: build(folder, "new", documents=300),
    lambda folder: (build(folder, "middle"), build(folder, "new")),
    moved_in_place,
    copied_over,
    copied_manifest_first,
    link_turned,
]


@pytest.mark.parametrize("replace", REPLACED)
def test_a_new_version_is_searched_and_the_old_text_is_gone(
    tmp_path: Path, replace: Callable[[Path], object]
) -> None:
    live = LiveIndex(build(tmp_path / "IDX", "old"))
    with serving(retriever=live, reload_every=0.01) as served:
        assert words(served) == {"old"}
        before = state(served)
        replace(tmp_path / "IDX")
        until(lambda: state(served)["version"] != before["version"] and words(served) == {"new"})
        until(lambda: state(served)["failure"] is None)
        answer = served.complete("tide", max_tokens=4)
        (stride,) = answer["flashback"]["strides"]
        assert stride["passages"][0]["excerpt"].endswith("new")
        with served.http() as http:
            described = http.get("/v1/models").json()["data"][0]["flashback"]
        assert described["passages"] == state(served)["passages"] == len(live)


def test_a_reload_takes_the_newest_version_at_once_and_needs_the_key(tmp_path: Path) -> None:
    live = LiveIndex(build(tmp_path / "IDX", "old"))
    with serving(retriever=live, api_key="secret", **ON_REQUEST) as served:
        build(tmp_path / "IDX", "new")
        with served.http() as http:
            assert http.post("/v1/reload").status_code == 401
            assert live.search(["old"], SearchOptions(1))[0]
            http.headers["Authorization"] = "Bearer secret"
            answer = http.post("/v1/reload").json()
            assert answer == {"object": "index", "changed": True} | {
                "version": live.version, "passages": 3, "failure": None
            }  # fmt: skip
            assert not live.search(["old"], SearchOptions(1))[0]
            assert http.post("/v1/reload").json()["changed"] is False
    with serving() as served:
        assert reload(served).json()["error"]["code"] == "no_index"


@pytest.mark.timeout(900)
def test_a_hangup_lets_the_command_look(tmp_path: Path, model_folder: Path) -> None:
    folder = build(tmp_path / "IDX", "old")
    arguments = ("serve", "--index", folder, "--model", model_folder, "--passage-tokens", "16")
    server = start(*arguments, "--port", "0", "--stride", "4", "--reload-every", "0")
    assert server.stderr is not None
    try:
        url = next(line.split()[2].decode() for line in server.stderr if b"http://" in line)
        with httpx2.Client(base_url=url, timeout=MINUTES) as http:
            before = http.get("/health").json()["index"]["version"]
            build(folder, "new")
            os.kill(server.pid, signal.SIGHUP)
            until(lambda: http.get("/health").json()["index"]["version"] != before)
            body = {"queries": ["old", "new"], "passages": 1}
            results = http.post("/v1/retrieve", json=body).json()["results"]
        assert [len(one["passages"]) for one in results] == [0, 1]
    finally:
        server.terminate()
        server.communicate()


def _data_file(folder: Path) -> Path:
    """The largest file of an index."""
    return max(folder.glob("flashback-data-*/*"), key=lambda path: path.stat().st_size)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _changed_manifest(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / MANIFEST).read_text("utf-8"))
    (folder / MANIFEST).write_text(json.dumps(record | changes), "utf-8")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
    "half a manifest": (
        lambda folder: (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:90]),
        "damaged",
    ),
    "another format": (lambda folder: _changed_manifest(folder, format=99), "format 99"),
    "a missing file": (lambda folder: _data_file(folder).unlink(), "is missing"),
    "a short file": (lambda folder: os.truncate(_data_file(folder), 10), "has 10 bytes"),
    "a changed bit": (lambda folder: _flip(_data_file(folder)), "checksum"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_version_leaves_the_old_one_serving_and_says_so(tmp_path: Path, name: str) -> None:
    spoil, says = BROKEN[name]
    live = LiveIndex(build(tmp_path / "IDX", "old"))
    with serving(retriever=live, **ON_REQUEST) as served, served.http() as http:
        version = state(served)["version"]
        build(tmp_path / "IDX", "new")
        spoil(tmp_path / "IDX")
        refused = reload(served)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "index_broken")
        after = state(served)
        assert after["version"] == version
        assert says in after["failure"]
        assert str(tmp_path) not in refused.text + after["failure"]  # clients see no paths
        assert words(served) == {"old"}
        assert "flashback_index_broken 1.0" in http.get("/metrics").text
        shutil.rmtree(tmp_path / "IDX", ignore_errors=True)
        build(tmp_path / "IDX", "mended")
        assert reload(served).json()["changed"] is True
        assert words(served) == {"mended"}
        counted = http.get("/metrics").text
        assert "flashback_index_broken 0.0" in counted
        assert 'flashback_index_versions_total{result="broken"} 1.0' in counted
        assert 'flashback_index_versions_total{result="taken"} 1.0' in counted


class AsTheyCome:
    """A reranker that changes nothing."""

    def scores(self, query: str, hits: Sequence[Hit]) -> list[float]:
        return [1.0] * len(hits)


def several(folder: Path) -> tuple[list[Path], Retriever]:
    """Two indexes and a retriever that is none, fused and reranked."""
    folders = [build(folder / name, f"{name}-old") for name in ("ONE", "TWO")]
    fused = FusedRetriever([*map(open_index, folders), QueryRetriever()])
    found = live(RerankedRetriever(fused, AsTheyCome()))
    assert isinstance(found, LiveRetriever)
    return folders, found


def test_each_of_several_indexes_is_renewed(tmp_path: Path) -> None:
    folders, retriever = several(tmp_path)
    with serving(retriever=retriever, reload_every=0.01) as served:
        versions = [state(served)["version"]]
        for folder, after in zip(
            reversed(folders), [{"ONE-old", "TWO-new"}, {"ONE-new", "TWO-new"}], strict=True
        ):
            build(folder, f"{folder.name}-new")
            until(lambda: state(served)["version"] != versions[-1])
            versions.append(state(served)["version"])
            assert after <= {text.split()[-1] for text in all_found(served)}
            assert "-old" not in "".join(all_found(served)) or "ONE-old" in after
        assert len({*versions}) == 3


def all_found(served: Served) -> list[str]:
    with served.http() as http:
        answer = http.post("/v1/retrieve", json={"queries": ["tide"], "passages": 20})
    return [passage["text"] for passage in answer.json()["results"][0]["passages"]]


def test_one_of_several_that_breaks_keeps_no_other_from_being_renewed(tmp_path: Path) -> None:
    (one, two), retriever = several(tmp_path)
    with serving(retriever=retriever, **ON_REQUEST) as served:
        build(two, "TWO-new")
        (one / MANIFEST).write_text("{", "utf-8")
        refused = reload(served)
        assert refused.status_code == 409
        assert "ONE, index 1 of 2: " in state(served)["failure"]
        assert str(tmp_path) not in refused.text
        ends = {text.split()[-1] for text in all_found(served)}
        assert {"ONE-old", "TWO-new"} <= ends
        shutil.rmtree(one)
        build(one, "ONE-new")
        assert reload(served).json()["changed"] is True
        assert reload(served).json()["changed"] is False
        assert "ONE-new" in {text.split()[-1] for text in all_found(served)}


def test_what_is_no_folder_is_not_renewed(tmp_path: Path) -> None:
    plain = QueryRetriever()
    assert live(plain) is plain
    assert isinstance(live(open_index(build(tmp_path / "IDX", "old"))), LiveIndex)
    _, retriever = several(tmp_path)
    assert isinstance(retriever, Renewable)
    assert retriever.current is retriever.current  # until it is renewed
    before = retriever.current
    assert not retriever.renew()
    assert retriever.current is before


def test_a_broken_version_that_is_taken_back_is_forgotten(tmp_path: Path) -> None:
    folder = build(tmp_path / "IDX", "old")
    manifest = (folder / MANIFEST).read_bytes()
    with serving(retriever=LiveIndex(folder), **ON_REQUEST) as served:
        (folder / MANIFEST).write_bytes(b"{")
        assert reload(served).status_code == 409
        (folder / MANIFEST).write_bytes(manifest)
        assert reload(served).json()["changed"] is False
        assert state(served)["failure"] is None


class Panic(BaseException):
    """What an index library that is no Python may raise."""


@pytest.mark.parametrize("kind", [ZeroDivisionError, MemoryError, SystemExit, Panic])
def test_whatever_an_index_raises_leaves_the_old_one_serving(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    class Failing(LiveIndex):
        def renew(self) -> bool:
            raise kind("/secret/path")

    with serving(retriever=Failing(build(tmp_path / "IDX", "old")), **ON_REQUEST) as served:
        refused = reload(served)
        assert refused.status_code == 409
        assert kind.__name__ in refused.text
        assert "secret" not in refused.text
        assert words(served) == {"old"}


@pytest.mark.parametrize("kind", [ValueError, SystemExit, Panic])
def test_a_watch_goes_on_after_a_panic(tmp_path: Path, kind: type[BaseException]) -> None:
    failing = threading.Event()

    class Failing(LiveIndex):
        def renew(self) -> bool:
            if failing.is_set():
                raise kind("no")
            return super().renew()

    failing.set()
    with serving(retriever=Failing(build(tmp_path / "IDX", "old")), reload_every=0.01) as served:
        until(lambda: kind.__name__ in str(state(served)["failure"]))
        build(tmp_path / "IDX", "new")
        failing.clear()
        until(lambda: words(served) == {"new"})
        until(lambda: state(served)["failure"] is None)


@pytest.mark.parametrize(("word", "warned"), [("new", False), ("longer" * 9, True)])
def test_a_new_version_says_what_of_it_is_never_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, word: str, warned: bool
) -> None:
    """24 tokens are shown of a passage, here 24 bytes."""
    with (
        serving(retriever=LiveIndex(build(tmp_path / "IDX", "old")), **ON_REQUEST) as served,
        caplog.at_level("WARNING"),
    ):
        assert reload(served).json()["changed"] is False
        build(tmp_path / "IDX", word)
        assert reload(served).json()["changed"] is True
        assert reload(served).json()["changed"] is False
    told = [one for one in caplog.messages if "3 of 3 passages looked at are longer" in one]
    assert len(told) == warned


def test_a_sample_that_cannot_be_taken_leaves_the_new_version_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveIndex(build(tmp_path / "IDX", "old"))

    def fail(_: object) -> list[str]:
        raise Panic

    monkeypatch.setattr(type(live.current), "sample", fail)
    with serving(retriever=live, **ON_REQUEST) as served:
        build(tmp_path / "IDX", "new")
        assert reload(served).json()["changed"] is True
        assert state(served)["failure"] is None
        assert words(served) == {"new"}


@pytest.mark.parametrize(
    "fields", [{"n": 3}, {"echo": True, "logprobs": 1}, {"prompt": ["tide a", "tide b"]}]
)
def test_a_request_in_flight_ends_with_the_version_it_began_with(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    reader, tokens, renewed = chat_reader(), list[int](), threading.Event()
    engine = ForcedEngine(reader, "a", tokens.append)

    def hold(_: int) -> None:
        if len(tokens) == 2:
            assert renewed.wait(MINUTES)

    engine.hooks.append(hold)
    live = LiveIndex(build(tmp_path / "IDX", "old"))
    options = {"flashback": {"first_boundary": 4}}
    body: dict[str, Any] = {"prompt": "tide tide", "max_tokens": 12} | options | fields
    with (
        serving(reader, live, engine=engine, **ON_REQUEST) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(lambda: served.complete(**body))
        until(lambda: len(tokens) >= 2)
        build(tmp_path / "IDX", "new")
        assert reload(served).json()["changed"] is True
        renewed.set()
        shown = _shown(answer.result())
        later = _shown(served.complete(**body))
    assert (shown, later) == ({"old"}, {"new"})


def _shown(answer: Any) -> set[str]:
    """The last words of the passages of an answer."""
    strides = answer["flashback"]["strides"]
    return {hit["excerpt"].split()[-1] for stride in strides for hit in stride["passages"]}


def test_the_watch_looks_when_it_is_asked_to_and_ends_with_the_server(tmp_path: Path) -> None:
    looks: list[int] = []

    class Counting(LiveIndex):
        def renew(self) -> bool:
            looks.append(1)
            return super().renew()

    with serving(retriever=Counting(build(tmp_path / "IDX", "old")), **ON_REQUEST) as served:
        watch = served.service.watch
        assert isinstance(watch, IndexWatch)
        assert not looks
        for count in (1, 2, 3):
            watch.look_now()
            until(lambda: len(looks) == count)  # noqa: B023
    until(lambda: not watch._thread.is_alive())


@pytest.mark.timeout(600)
def test_many_clients_while_the_index_is_replaced(tmp_path: Path) -> None:
    """No failure, every answer from one version, each whole version comes into use."""
    folder, ended = build(tmp_path / "IDX", "v0"), threading.Event()
    reader = chat_reader()
    engine = ForcedEngine(reader, "a")
    with (
        serving(reader, LiveIndex(folder), engine=engine, reload_every=0.01) as served,
        ThreadPoolExecutor(8) as pool,
    ):

        def client(number: int) -> int:
            asked = 0
            while not ended.is_set():
                answer = served.complete("tide", max_tokens=12, n=2) if number % 2 else None
                shown = _shown(answer) if answer else words(served)
                assert len(shown) == 1, shown
                asked += 1
            return asked

        clients = [pool.submit(client, number) for number in range(8)]
        try:
            for number in range(1, 8):
                if number % 3 == 0:
                    broken = build(tmp_path / f"BROKEN{number}", f"v{number}")
                    _flip(_data_file(broken))
                    shutil.copytree(
                        _data_file(broken).parent, folder / _data_file(broken).parent.name
                    )
                    shutil.copy(broken / MANIFEST, folder / MANIFEST)
                    until(lambda: state(served)["failure"] is not None)
                else:
                    build(folder, f"v{number}")
                    until(lambda: words(served) == {f"v{number}"})  # noqa: B023
        finally:
            ended.set()
        assert all(one.result() for one in clients)
        with served.http() as http:
            counted = http.get("/metrics").text
    assert 'status="5' not in counted
