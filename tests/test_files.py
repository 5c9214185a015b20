import json
import subprocess
import sys

import numpy as np
import pytest

from moebius_lab import LabError, files
from moebius_lab.files import (
    COUNT,
    NUMBER,
    STORED_FILE,
    TEXT,
    DamagedFile,
    changed_file,
    file_sha256,
    kept_json,
    listed,
    mapping,
    misfit,
    read_arrays,
    read_json,
    record,
    replace_folder,
    require_room,
    write_json,
    write_whole,
    written_whole,
)

SHAPE = record(name=TEXT, sizes=listed(COUNT, 2), by_name=mapping(NUMBER))
WHOLE = {"name": "a", "sizes": [1, 2], "by_name": {"x": 0.5}, "more": None}


def test_what_is_written_is_read_again_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, WHOLE | {"by_name": {"x": np.float32(0.5)}})
    assert read_json(path, SHAPE, "write it again") == WHOLE
    write_whole(path, "ünd\n")
    assert path.read_bytes() == "ünd\n".encode() and list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, WHOLE)
    with pytest.raises(RuntimeError, match="in the middle"):
        with written_whole(path) as part:
            part.write_text("half", encoding="utf-8")
            raise RuntimeError("in the middle")
    with pytest.raises(TypeError):
        write_json(path, {"name": object()})
    assert read_json(path, SHAPE, "") == WHOLE and list(tmp_path.iterdir()) == [path]


def test_links_and_permissions_stay(tmp_path):
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    write_json(path, {})
    path.chmod(0o640)
    link.symlink_to(path)
    write_json(link, WHOLE)
    assert link.is_symlink() and read_json(path, SHAPE, "") == WHOLE and path.stat().st_mode & 0o777 == 0o640


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    made, folder = tmp_path / "made", tmp_path / "new" / "folder"
    for content in ("one", "two"):
        made.mkdir()
        write_whole(made / content, content)
        replace_folder(made, folder)
        assert [path.name for path in folder.iterdir()] == [content] and not made.exists()


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path):
    """With a limit on the size of files, which fails in the middle of a write as a full disk does."""
    path = tmp_path / "a.json"
    write_json(path, WHOLE)
    code = f"""
import resource, signal
from moebius_lab.files import write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_json({str(path)!r}, list(range(10_000)))
except OSError as error:
    print("refused", error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.startswith("refused")
    assert read_json(path, SHAPE, "") == WHOLE and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b'{"name": "a", "sizes"', "is not JSON"),
        (b"\0" * 50, "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "damaged .*type"),
        (b"null", "damaged .*type"),
        (b'{"name": "a", "sizes": [1, 2]}', "'by_name' is a required property"),
        (b'{"name": 3, "sizes": [1, 2], "by_name": {}}', r"\$\.name should have type 'string'"),
        (b'{"name": "a", "sizes": [1, -2], "by_name": {}}', r"\$\.sizes\[1\] should have minimum 0"),
        (b'{"name": "a", "sizes": [1], "by_name": {}}', r"\$\.sizes should have minItems 2"),
        (b'{"name": "a", "sizes": [1, 2], "by_name": {"x": "y"}}', r"\$\.by_name\.x should have type 'number'"),
    ],
)
def test_damage_is_one_line_that_names_the_file_and_what_to_do(tmp_path, capsys, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=f"a.json .*{words}.*; bring another") as error:
        read_json(path, SHAPE, "bring another")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert kept_json(path, SHAPE) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said and "made again" in said


def test_a_file_that_is_missing(tmp_path, capsys):
    with pytest.raises(LabError, match="a.json cannot be read .*; bring another"):
        read_json(tmp_path / "a.json", SHAPE, "bring another")
    assert kept_json(tmp_path / "a.json", SHAPE) is None and capsys.readouterr().err == ""


def test_arrays_are_compared_with_their_checksums_and_shapes(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones((3, 4, 5)), b=np.float64(2))
    arrays = read_arrays(path, "", {"a": (None, 4, 5), "b": ()})
    assert arrays["a"].shape == (3, 4, 5) and arrays["b"] == 2 and set(read_arrays(path, "")) == {"a", "b"}
    for shapes in ({"a": (3, 4)}, {"a": (None, 5, 5)}, {"c": ()}):
        with pytest.raises(DamagedFile, match="a.npz is damaged .*; run it again"):
            read_arrays(path, "run it again", shapes)
    whole = path.read_bytes()
    for bad in (
        b"",
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:200] + bytes(64) + whole[264:],
        b"[]",
        json.dumps(WHOLE).encode(),
    ):
        path.write_bytes(bad)
        with pytest.raises(DamagedFile, match="a.npz is damaged .*; run it again"):
            read_arrays(path, "run it again")


def test_files_are_known_by_their_content(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    listed = [{"name": "a.bin", "bytes": 3, "sha256": file_sha256(path)}]
    assert misfit(listed[0], STORED_FILE) == "" and changed_file(tmp_path, listed) == ""
    path.write_bytes(b"two")
    assert "a.bin is damaged" in changed_file(tmp_path, listed)
    path.write_bytes(b"four")
    assert "a.bin has 4 bytes, not 3" in changed_file(tmp_path, listed)
    path.unlink()
    assert "a.bin is missing" in changed_file(tmp_path, listed)


def test_room_is_asked_for_where_the_folder_will_be(tmp_path, monkeypatch):
    require_room(tmp_path / "not" / "there" / "yet", 1, "it")
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(LabError, match="yet: it needs 2 MB but only 1 MB are free; free some space"):
        require_room(tmp_path / "not" / "there" / "yet", 2e6, "it")
