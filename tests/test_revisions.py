"""Which commit of the hub a dataset is made of, and how much disk it takes, against a stand-in for the hub."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

import preprocess.__main__ as command
from muppet_fairseq.errors import MuppetError
from preprocess.catalog import CATALOG
from preprocess.disk import DiskNeed, disk_needed
from preprocess.download import Fetch, Hub
from preprocess.entry import Entry
from preprocess.originals import FirstFound, Original, squad_json
from preprocess.revisions import add_revisions, read_revisions
from tests.hub_server import HubServer, Repo, hub_server
from tests.toy_data import nli_entry, nli_rows, write_bert_tokenizer, write_wheel

OLD, NEW = "a" * 40, "b" * 40
KEY = "toys/nli@refs/convert/parquet"
SPLITS = {"train": "train", "valid": "validation"}


def parquet(count: int, name: str) -> bytes:
    stream = io.BytesIO()
    # each file is another, or the client has it already
    table = pyarrow.Table.from_pylist(nli_rows(count)).replace_schema_metadata({"name": name})
    pyarrow.parquet.write_table(table, stream)
    return stream.getvalue()


def files(count: int) -> dict[str, bytes]:
    names = [f"{config}/{split}/0000.parquet" for config in "ab" for split in SPLITS.values()]
    return {name: parquet(count, name) for name in names} | {".gitattributes": b"", "README.md": b"a card"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Two commits of one repository; its branch is at the older."""
    with hub_server({"toys/nli": Repo({OLD: files(12), NEW: files(30)}, {"refs/convert/parquet": OLD})}) as server:
        # what HF_ENDPOINT would set when the client is imported
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """Two datasets of the repository."""
    made = [nli_entry(Hub("toys/nli", config), name=f"toy_{config}", splits=SPLITS) for config in "ab"]
    for entry in made:
        monkeypatch.setitem(CATALOG, entry.name, entry)
    return made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_tokenizer(tmp_path_factory.mktemp("tokenizer") / "toy")


def prepare(names: str, out: Path, tokenizer: Path, *options: object, cache: str = "cache") -> int:
    arguments = ["--tokenizer", tokenizer, "--out", out, "--cache", out.parent / cache, *options]
    return command.main(["prepare", "--datasets", names, *map(str, arguments)])


def made_of(out: Path, name: str) -> tuple[str, int]:
    """The commit that a dataset says, and its number of training examples."""
    meta = json.loads((out / name / "dataset.json").read_text())
    assert (meta["revision"]["repo"], meta["revision"]["revision"]) == ("toys/nli", "refs/convert/parquet")
    return meta["revision"]["commit"], meta["splits"]["train"]["examples"]


@pytest.mark.usefixtures("entries")
def test_a_folder_keeps_to_its_commits(hub: HubServer, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare("toy_a", out, tokenizer) == 0
    assert made_of(out, "toy_a") == (OLD, 12)
    assert read_revisions(out / "revisions.json") == {KEY: OLD}
    hub.repos["toys/nli"].branches["refs/convert/parquet"] = NEW
    # with another cache, as on another day: what counts is the folder's own file
    assert prepare("toy_a,toy_b", out, tokenizer, cache="other") == 0
    assert made_of(out, "toy_b") == (OLD, 12)
    assert prepare("toy_b", tmp_path / "new", tokenizer) == 0
    assert made_of(tmp_path / "new", "toy_b") == (NEW, 30)


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize("jobs", [1, 2])
def test_commits_that_are_given_win(hub: HubServer, tokenizer: Path, tmp_path: Path, jobs: int) -> None:
    out, given = tmp_path / "out", tmp_path / "given.json"
    add_revisions(given, {KEY: NEW, "toys/others@main": OLD})
    assert prepare("toy_a", out, tokenizer) == 0
    assert prepare("toy_a,toy_b", out, tokenizer, "--revisions", given, "--jobs", jobs) == 0
    # the dataset that was there is made again
    assert made_of(out, "toy_a") == made_of(out, "toy_b") == (NEW, 30)
    assert read_revisions(out / "revisions.json") == {KEY: NEW, "toys/others@main": OLD}


@pytest.mark.usefixtures("entries")
def test_one_commit_for_all_datasets_of_a_repository(hub: HubServer, tokenizer: Path, tmp_path: Path) -> None:
    assert prepare("toy_a,toy_b", tmp_path / "out", tokenizer) == 0
    assert sum("/revision/" in request for request in hub.requests) == 1
    assert not any("README" in request for request in hub.requests)


@pytest.mark.usefixtures("entries")
def test_without_network_the_cache_counts(
    hub: HubServer, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare("toy_a", tmp_path / "out", tokenizer) == 0
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert prepare("toy_a", tmp_path / "again", tokenizer) == 0
    assert made_of(tmp_path / "again", "toy_a") == (OLD, 12)


def test_a_branch_that_is_not_there_is_one_sentence(
    hub: HubServer, entries: list[Entry], tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos["toys/nli"].branches.clear()
    assert prepare("toy_a", tmp_path / "out", tokenizer) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("muppet: the hub does not give toys/nli at refs/convert/parquet")
    assert disk_needed(entries, Fetch(tmp_path / "cache"), tmp_path).downloads == {"toy_a": None, "toy_b": None}


def test_other_sources_say_what_they_are(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, {"toy/x.jsonl": nli_rows(3)})
    fetch = Fetch(tmp_path, tmp_path)
    assert wheel.identity(fetch) == {"package": "toy==1.0", "sha256": wheel.sha256}
    assert Hub("toys/nli").identity(fetch) is None
    assert FirstFound(Original("x.json", squad_json), wheel).identity(fetch) == wheel.identity(fetch)
    assert Hub("toys/nli", revision=NEW).identity(Fetch(tmp_path))["commit"] == NEW


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read as a revisions file"),
        ("{", "cannot be read as a revisions file"),
        ("[]", "is no revisions file, a JSON object"),
        (json.dumps({"toys/nli": OLD}), "names 'toys/nli', which is not 'owner/name@branch'"),
        (json.dumps({KEY: "main"}), f"gives {KEY} the commit 'main', which is not 40 digits"),
        (json.dumps({KEY: 5}), f"gives {KEY} the commit '5', which is not 40 digits"),
    ],
)
def test_a_wrong_revisions_file_is_one_sentence(
    content: str | None, sentence: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given.json"
    if content is not None:
        given.write_text(content)
    assert prepare("mini_imdb", tmp_path / "out", tokenizer, "--revisions", given) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"muppet: {given} {sentence}")


class TestDiskNeeded:
    def test_what_is_in_the_cache_is_not_counted(self, hub: HubServer, entries: list[Entry], tmp_path: Path) -> None:
        fetch = Fetch(tmp_path / "cache")
        first, second = entries
        train, valid = (len(content) for name, content in files(12).items() if name.startswith("a/"))
        assert disk_needed(entries, fetch, tmp_path).downloads == {"toy_a": train + valid, "toy_b": train + valid}
        # nothing was fetched for it
        assert not any("0000.parquet" in request and "GET" in request for request in hub.requests)
        list(first.source.rows("train", fetch))
        need = disk_needed(entries, fetch, tmp_path)
        assert need.downloads == {"toy_a": valid, "toy_b": train + valid}
        assert need.binarised["toy_a"] == need.binarised["toy_b"] == round(1.3 * (train + valid))
        twin = dataclasses.replace(second, name="twin", family="mrc")
        need = disk_needed([second, twin], fetch, tmp_path)
        assert need.downloads == {"toy_b": train + valid, "twin": 0}
        assert need.binarised["twin"] == 4 * (train + valid)

    def test_a_users_own_files_need_no_download(self, tmp_path: Path) -> None:
        raw = tmp_path / "raw"
        entry = nli_entry(write_wheel(raw, {"toy/x.jsonl": nli_rows(30)}))
        length = len("".join(json.dumps(row) + "\n" for row in nli_rows(30)))
        need = disk_needed([entry], Fetch(raw, raw), tmp_path / "not" / "there")
        assert (need.downloads, need.binarised) == ({"toy_nli": 0}, {"toy_nli": round(0.7 * length)})
        for split in SPLITS.values():
            file = raw / f"toys/nli/a/{split}/0000.parquet"
            file.parent.mkdir(parents=True)
            file.write_bytes(parquet(5, "x"))
        entry = nli_entry(FirstFound(Hub("toys/nli", "a"), Original("x", squad_json)), splits=SPLITS)
        need = disk_needed([entry], Fetch(raw, raw), tmp_path)
        assert need.downloads == {"toy_nli": 0}
        assert need.binarised == {"toy_nli": round(1.3 * 2 * len(parquet(5, "x")))}
        # neither a package that is not fetched yet, nor files that are not there
        assert disk_needed([entry], Fetch(tmp_path, tmp_path), tmp_path).downloads == {"toy_nli": None}

    def test_what_cannot_fit_is_one_sentence(self) -> None:
        cache, out = (Path("raw"), 5_000_000_000), (Path("data-bin"), 1_000_000_000)
        downloads = {"a": 3_000_000_000, "b": None, "c": 1_900_000_000}
        need = DiskNeed(downloads, {"a": 2_000_000_000, "b": None}, cache, out)
        need.check()
        assert str(need) == (
            "downloads 4.9 GB to raw (5.0 GB free), writes about 2.0 GB to data-bin (1.0 GB free); "
            "of 1 datasets the size is not known"
        )
        with pytest.raises(MuppetError, match=r"the downloads need 5\.9 GB, but raw has 5\.0 GB free; name another"):
            dataclasses.replace(need, downloads=downloads | {"d": 1_000_000_000}).check()
