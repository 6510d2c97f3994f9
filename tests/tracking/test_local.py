"""An output directory holds an old audit or a new one, whole, and never swallows other files."""

from __future__ import annotations

import pytest

from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.tracking import Artifact, Manifest, add_file, listing, write_directory


def parcel(folder, text):
    folder.mkdir()
    files = []
    for path in ("summary.json", "contest/1.html"):
        file = folder / path.replace("/", "_")
        file.write_text(text)
        files.append(Artifact(path, file))
    return files, Manifest(text, "f", "now", listing(files))


def held(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def test_replaces_an_audit_and_leaves_nothing_beside_it(tmp_path):
    for text in ("first", "second"):
        files, manifest = parcel(tmp_path / text, text)
        where = write_directory(files, manifest, tmp_path / "a" / "out")
    assert held(where) == {"summary.json": "second", "contest/1.html": "second"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert Manifest.from_json((where / "manifest.json").read_text()) == manifest


def test_refuses_a_directory_of_other_things(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    files, manifest = parcel(tmp_path / "new", "new")
    with pytest.raises(RequestError, match="holds files that are not an audit's; pass a new or empty directory"):
        write_directory(files, manifest, tmp_path / "out")
    with pytest.raises(RequestError, match="is a file; pass a directory"):
        write_directory(files, manifest, tmp_path / "out" / "thesis.tex")
    assert held(tmp_path / "out") == {"thesis.tex": "years"}


def test_a_full_disk_leaves_the_earlier_audit(tmp_path):
    files, manifest = parcel(tmp_path / "old", "old")
    write_directory(files, manifest, tmp_path / "out")
    files, manifest = parcel(tmp_path / "new", "new")
    files[1].file.unlink()  # as good as a disk that gives out in the middle
    with pytest.raises(StoreError, match=r"cannot be written .*free some space or pass another one"):
        write_directory(files, manifest, tmp_path / "out")
    assert set(held(tmp_path / "out").values()) == {"old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "out"]


def test_a_page_joins_the_manifest(tmp_path):
    files, manifest = parcel(tmp_path / "new", "new")
    write_directory(files, manifest, tmp_path / "out")
    page = tmp_path / "page"
    page.write_text("page")
    add_file(Artifact("contest/2.html", page), tmp_path / "out")
    joined = Manifest.from_json((tmp_path / "out" / "manifest.json").read_text())
    assert joined.matches("contest/2.html", tmp_path / "out" / "contest" / "2.html")
    assert set(joined.artifacts) == {"summary.json", "contest/1.html", "contest/2.html"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "\x00"])
def test_what_is_no_manifest(text):
    assert Manifest.from_json(text) is None
