from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from places import REPOSITORY

from vggfeat.core.file_types import IMAGE_EXTENSIONS
from vggfeat.core.records import ImageRef
from vggfeat.errors import InputError
from vggfeat.images.skipped import NOT_REGULAR
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggfeat.images.image_list import ImageList


def make(folder: Path, *names: str) -> Path:
    """Files of as many bytes as their name has letters."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(path.name))
    return folder


def names(manifest: ImageList) -> list[str]:
    return [os.fsdecode(path) for path in manifest.paths]


def test_folder_is_read_with_all_below_it(tmp_path: Path) -> None:
    """Images at every depth are found, relative to the folder, sorted by their bytes."""
    make(tmp_path, "b.jpg", "a/z.png", "a/b/c/d.webp", "a.jpg", "B.jpg", "ä.gif")
    manifest = discover([tmp_path])
    assert names(manifest) == ["B.jpg", "a.jpg", "a/b/c/d.webp", "a/z.png", "b.jpg", "ä.gif"]
    assert manifest.root == os.fsencode(tmp_path)
    assert list(manifest.paths) == sorted(manifest.paths)


def test_rows_carry_size_and_time(tmp_path: Path) -> None:
    """Each row knows its file's size and time of change, and where it lies."""
    make(tmp_path, "a.jpg", "long name.png")
    os.utime(tmp_path / "a.jpg", ns=(5, 1_234_567_890_123_456_789))
    manifest = discover([str(tmp_path)])
    assert len(manifest) == 2
    assert manifest[0] == ImageRef(b"a.jpg", 5, 1_234_567_890_123_456_789)
    assert manifest[1].size == 13
    assert manifest.absolute(1) == os.fsencode(tmp_path / "long name.png")
    assert manifest.sizes.dtype == np.int64
    assert manifest.mtimes.dtype == np.int64
    assert manifest.mtimes[1] == (tmp_path / "long name.png").stat().st_mtime_ns


def test_manifest_travels_to_workers(tmp_path: Path) -> None:
    """A manifest can be pickled, and ends like any sequence."""
    manifest = discover([make(tmp_path, "a.jpg", "b.jpg")])
    copy: ImageList = pickle.loads(pickle.dumps(manifest))
    assert [copy[row] for row in range(2)] == [manifest[row] for row in range(2)]
    with pytest.raises(IndexError):
        manifest[2]


def test_manifest_cannot_be_changed(tmp_path: Path) -> None:
    """A manifest is frozen and slotted, and equal to itself only, as its arrays compare."""
    folder = make(tmp_path, "a.jpg", "b.jpg")
    manifest = discover([folder])
    assert not hasattr(manifest, "__dict__")
    assert manifest != discover([folder])
    with pytest.raises(AttributeError):
        manifest.root = b"/"  # type: ignore[misc]  # what is forbidden is the point


def test_extensions_decide_in_folders(tmp_path: Path) -> None:
    """Other extensions are skipped and counted, in lower case, '' for none."""
    make(tmp_path, "a.JPG", "b.JpEg", "c.txt", "d.TXT", "e", "f/g.json", "jpg", "h.jpg.part", "i.")
    manifest = discover([tmp_path])
    assert names(manifest) == ["a.JPG", "b.JpEg"]
    assert manifest.skipped == {"": 3, "json": 1, "part": 1, "txt": 2}


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "jpe", "png", "webp", "bmp", "tif", "gif"])
def test_common_extensions_are_known(extension: str) -> None:
    """The formats people keep images in are among those chosen."""
    assert extension.encode() in IMAGE_EXTENSIONS


def test_hidden_names_are_passed_over(tmp_path: Path) -> None:
    """Files and folders with a leading dot are counted, and are images if named themselves."""
    make(tmp_path, "a.jpg", "._a.jpg", ".thumbs/b.jpg", ".c.jpg", "d/.e/f.jpg", ".DS_Store")
    manifest = discover([tmp_path])
    assert names(manifest) == ["a.jpg"]
    assert manifest.skipped == {"hidden image": 2, "hidden folder": 2}
    assert names(discover([tmp_path / ".thumbs", tmp_path / ".c.jpg"])) == [
        ".c.jpg",
        ".thumbs/b.jpg",
    ]


def test_what_is_no_file_is_counted(tmp_path: Path) -> None:
    """A FIFO named like an image is skipped, and is neither opened nor listed."""
    make(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "folder.jpg").mkdir()
    manifest = discover([tmp_path])
    assert names(manifest) == ["a.jpg"]
    assert manifest.skipped == {NOT_REGULAR: 1}


def test_odd_names(tmp_path: Path) -> None:
    """Names of 250 characters, with line ends, or that are no UTF-8 come through unchanged."""
    odd = sorted([b"n" * 246 + b".jpg", b"a\nb.jpg", b"\xff\xfe.png", b"a b'\".gif", b"*?.bmp"])
    for name in odd:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    manifest = discover([tmp_path])
    assert list(manifest.paths) == odd
    assert os.path.exists(manifest.absolute(4))


def test_order_of_creation_does_not_matter(tmp_path: Path) -> None:
    """Two folders of the same files, made in different orders, give the same manifest."""
    files = [f"{a}/{b}/{c}.jpg" for a in "xyz" for b in "abcd" for c in "123456"]
    listed = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        links = [f"link{number}" for number in range(4)]
        order = [*files, *links]
        random.Random(seed).shuffle(order)
        for name in order:
            if name in links:
                (folder / name).symlink_to("../shared")
            else:
                make(folder, name)
        make(tmp_path / "shared", "deep/s.jpg")
        listed.append(names(discover([folder])))
    assert listed[0] == sorted([*files, "link0/deep/s.jpg"])
    assert listed[0] == listed[1] == listed[2]


@pytest.mark.parametrize("backwards", [False, True])
def test_order_of_reading_does_not_matter(
    backwards: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way the file system lists a folder, the first link by name gets the images."""
    make(tmp_path, "shared/s.jpg", "images/a.jpg", "images/b.jpg")
    for number in range(9):
        (tmp_path / f"images/link{number}").symlink_to("../shared")
    scan = os.scandir

    def ordered(folder: bytes) -> Any:
        with scan(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name, reverse=backwards)
        return contextlib.nullcontext(entries)

    monkeypatch.setattr(os, "scandir", ordered)
    assert names(discover([tmp_path / "images"])) == ["a.jpg", "b.jpg", "link0/s.jpg"]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    """A linked folder's images appear under the link."""
    make(tmp_path / "elsewhere", "a.jpg", "b/c.jpg")
    make(tmp_path / "images", "d.jpg")
    (tmp_path / "images/link").symlink_to("../elsewhere")
    expected = ["d.jpg", "link/a.jpg", "link/b/c.jpg"]
    assert names(discover([tmp_path / "images"])) == expected


def test_links_to_files_are_images_of_their_own(tmp_path: Path) -> None:
    """A linked file has its target's size; a broken link stays, with size 0."""
    make(tmp_path, "target.jpg")
    (tmp_path / "link.jpg").symlink_to("target.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "broken").symlink_to("nowhere")
    manifest = discover([tmp_path])
    assert names(manifest) == ["broken.jpg", "link.jpg", "self.jpg", "target.jpg"]
    assert manifest.sizes.tolist() == [0, 10, 0, 10]
    assert manifest.mtimes[0] == 0
    assert manifest.skipped == {"": 1}


def test_loops_end(tmp_path: Path) -> None:
    """Links that lead up or to one another end, and each image is listed once."""
    make(tmp_path, "a/b/c.jpg", "d/e.jpg")
    (tmp_path / "a/b/up").symlink_to("../..")
    (tmp_path / "a/here").symlink_to(".")
    (tmp_path / "a/d").symlink_to("../d")
    (tmp_path / "d/a").symlink_to("../a")
    assert names(discover([tmp_path])) == ["a/b/c.jpg", "d/e.jpg"]


def test_real_folders_win_over_links(tmp_path: Path) -> None:
    """A folder that is also linked is listed under its own name, however the link sorts."""
    make(tmp_path, "m/n/a.jpg")
    (tmp_path / "a link").symlink_to("m")
    (tmp_path / "m/a link").symlink_to("n")
    (tmp_path / "z").symlink_to("m/n")
    assert names(discover([tmp_path])) == ["m/n/a.jpg"]


def test_real_folders_win_across_sources(tmp_path: Path) -> None:
    """A link in one source does not take the images of the other."""
    make(tmp_path, "b/x.jpg", "a/y.jpg")
    (tmp_path / "a/link").symlink_to("../b")
    (tmp_path / "0").symlink_to("b")
    sources = [tmp_path / "0", tmp_path / "a", tmp_path / "b"]
    assert names(discover(sources)) == ["a/y.jpg", "b/x.jpg"]


def test_named_folder_may_be_a_link(tmp_path: Path) -> None:
    """A link named as the source is the root as it is written."""
    make(tmp_path / "real", "a.jpg")
    (tmp_path / "link").symlink_to("real")
    manifest = discover([tmp_path / "link"])
    assert manifest.root == os.fsencode(tmp_path / "link")
    assert names(manifest) == ["a.jpg"]


def test_file_is_taken_whatever_its_extension(tmp_path: Path) -> None:
    """A file named itself is an image by the user's word; its folder is the root."""
    make(tmp_path, "a.dat", "b.jpg")
    manifest = discover([tmp_path / "a.dat"])
    assert names(manifest) == ["a.dat"]
    assert manifest.root == os.fsencode(tmp_path)


def test_two_roots_have_their_common_folder(tmp_path: Path) -> None:
    """Paths of several sources are relative to what they have in common."""
    make(tmp_path, "x/one/a.jpg", "x/two/a.jpg", "x/three.png")
    manifest = discover([tmp_path / "x/two", tmp_path / "x/one"])
    assert manifest.root == os.fsencode(tmp_path / "x")
    assert names(manifest) == ["one/a.jpg", "two/a.jpg"]
    both = discover([tmp_path / "x/two", tmp_path / "x/three.png"])
    assert names(both) == ["three.png", "two/a.jpg"]


def test_same_image_named_twice_is_one_row(tmp_path: Path) -> None:
    """Overlapping folders, files and lists give each path once."""
    make(tmp_path, "a/b/c.jpg", "a/d.jpg")
    listed = f"{tmp_path}/a/d.jpg\n{tmp_path}/a/./b/../d.jpg\n{tmp_path}/a\n"
    sources = [str(tmp_path / "a/b"), str(tmp_path / "a"), f"{tmp_path}/a/b/c.jpg", "-"]
    manifest = discover(sources, stdin=io.BytesIO(listed.encode()))
    assert names(manifest) == ["b/c.jpg", "d.jpg"]


def test_root_can_be_given(tmp_path: Path) -> None:
    """A root above makes longer paths."""
    make(tmp_path, "x/a.jpg")
    manifest = discover([tmp_path / "x"], root=str(tmp_path))
    assert names(manifest) == ["x/a.jpg"]
    assert manifest.root == os.fsencode(tmp_path)
    assert names(discover([tmp_path / "x"], root="/"))[0].endswith("/x/a.jpg")


def test_root_must_hold_everything(tmp_path: Path) -> None:
    """Images outside the root given are an error that names them; a common prefix is no folder."""
    make(tmp_path, "x/a.jpg", "xy/b.jpg")
    with pytest.raises(InputError, match=r"not below root '.*/x': '.*/xy/b\.jpg'; name a root"):
        discover([tmp_path / "x", tmp_path / "xy"], root=str(tmp_path / "x"))


def test_relative_sources_start_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names, in arguments and in lists, start at the current directory."""
    make(tmp_path, "x/a.jpg", "x/b.jpg", "lists/l.txt")
    (tmp_path / "lists/l.txt").write_text("x/a.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert discover(["x"]).root == os.fsencode(tmp_path / "x")
    assert discover(["."]).root == os.fsencode(tmp_path)
    manifest = discover(["@lists/l.txt"])
    assert manifest.absolute(0) == os.fsencode(tmp_path / "x/a.jpg")
    assert names(discover(["./x/../x/b.jpg"])) == ["b.jpg"]


def test_two_leading_slashes_are_one(tmp_path: Path) -> None:
    """`//x` and `/x` are the same image."""
    make(tmp_path, "a.jpg")
    manifest = discover([f"/{tmp_path}/a.jpg", f"{tmp_path}/a.jpg"])
    assert names(manifest) == ["a.jpg"]
    assert manifest.root == os.fsencode(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"a.jpg\nsub/b.png\n",
        b"a.jpg\r\nsub/b.png\r\n",
        b"\xef\xbb\xbfa.jpg\n\n  \nsub/b.png",
        b"a.jpg\0sub/b.png\0",
        b"a.jpg\0\0sub/b.png",
        b"sub/b.png\na.jpg\na.jpg\n./a.jpg\n",
    ],
    ids=["lines", "windows", "mark and blanks", "print0", "no last NUL", "twice"],
)
def test_lists(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists may come from Windows, with a byte order mark, blank lines, or `find -print0`."""
    make(tmp_path, "a.jpg", "sub/b.png")
    (tmp_path / "list.txt").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for manifest in (discover(["@list.txt"]), discover(["-"], stdin=io.BytesIO(data))):
        assert names(manifest) == ["a.jpg", "sub/b.png"]
        assert manifest.sizes.tolist() == [5, 5]


def test_list_entries_are_raw_bytes(tmp_path: Path) -> None:
    """With NULs between them, names may hold line ends and bytes that are no UTF-8."""
    odd = [b"\xff.jpg", b"a\nb.jpg", b" c \r"]
    folder = os.fsencode(tmp_path)
    for name in odd:
        with open(folder + b"/" + name, "wb") as stream:
            stream.write(b"1234")
    manifest = discover(["-"], stdin=io.BytesIO(b"\0".join(folder + b"/" + name for name in odd)))
    assert list(manifest.paths) == sorted(odd)
    assert manifest.sizes.tolist() == [4, 4, 4]


def test_listed_names_keep_their_spaces(tmp_path: Path) -> None:
    """Spaces around a name belong to it."""
    make(tmp_path, " a.jpg ")
    manifest = discover(["-"], stdin=io.BytesIO(f"{tmp_path}/ a.jpg \n".encode()))
    assert manifest[0] == ImageRef(b" a.jpg ", 7, (tmp_path / " a.jpg ").stat().st_mtime_ns)


def test_listed_path_that_is_missing_stays(tmp_path: Path) -> None:
    """A listed file that does not exist keeps its row, with size 0 and time 0."""
    make(tmp_path, "a.jpg")
    listed = f"{tmp_path}/gone.jpg\n{tmp_path}/a.jpg\n{tmp_path}/a.jpg/b.jpg\n".encode()
    manifest = discover(["-"], stdin=io.BytesIO(listed))
    assert names(manifest) == ["a.jpg", "a.jpg/b.jpg", "gone.jpg"]
    assert manifest[2] == ImageRef(b"gone.jpg", 0, 0)


def test_listed_folder_is_walked(tmp_path: Path) -> None:
    """A folder in a list counts as if it were named, and its common folder as well."""
    make(tmp_path, "x/a.jpg", "x/b.txt", "y/c.dat")
    listed = f"{tmp_path}/x\n{tmp_path}/y/c.dat\n".encode()
    manifest = discover(["-"], stdin=io.BytesIO(listed))
    assert names(manifest) == ["x/a.jpg", "y/c.dat"]
    assert manifest.skipped == {"txt": 1}


def test_standard_input_of_a_process(tmp_path: Path) -> None:
    """Without a stand-in, `-` is the process's own standard input, as bytes."""
    folder = os.fsencode(tmp_path)
    with open(folder + b"/\xff.jpg", "wb"):
        pass
    code = "from vggfeat.images.sources import discover; print(discover(['-']).paths)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=folder + b"/\xff.jpg\n", cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    assert done.stdout.strip() == b"(b'\\xff.jpg',)"


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process has no standard input, `-` says so."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="'-' \\(standard input is closed\\)"):
        discover(["-"])


def test_files_called_like_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called `-` or `@x` is reached by a leading `./`, or as a Path."""
    make(tmp_path, "-", "@x.jpg")
    monkeypatch.chdir(tmp_path)
    assert names(discover(["./-", "./@x.jpg"])) == ["-", "@x.jpg"]
    assert names(discover([Path("-"), Path("@x.jpg")])) == ["-", "@x.jpg"]


def test_all_missing_sources_are_named_at_once(tmp_path: Path) -> None:
    """Sources that do not exist are one error, which names each with its reason."""
    make(tmp_path, "a.jpg", "file")
    sources: list[str | Path] = [
        tmp_path / "gone", tmp_path / "a.jpg", tmp_path / "file/x", f"@{tmp_path}/list",
        f"@{tmp_path}", "",
    ]  # fmt: skip
    with pytest.raises(InputError) as caught:
        discover(sources)
    message = str(caught.value)
    assert f"'{tmp_path}/gone' (No such file or directory)" in message
    assert f"'{tmp_path}/file/x' (Not a directory)" in message
    assert f"'@{tmp_path}/list' (No such file or directory)" in message
    assert f"'@{tmp_path}' (Is a directory)" in message
    assert "'' (an empty name)" in message
    assert "a.jpg" not in message


def test_long_errors_are_cut(tmp_path: Path) -> None:
    """Of many offenders the first five are named and the others counted."""
    with pytest.raises(
        InputError, match=r"/4' \(No such file or directory\) and 15 more; expected"
    ):
        discover([tmp_path / str(number) for number in range(20)])


def test_no_images_says_what_was_passed_over(tmp_path: Path) -> None:
    """A folder without images is an error that counts what was there by extension."""
    make(tmp_path, "a.txt", "b.txt", "c.psdx", "d")
    with pytest.raises(InputError) as caught:
        discover([str(tmp_path)])
    assert str(caught.value) == (
        f"no images in '{tmp_path}'; 4 files skipped because of the extension "
        "(2 .txt, 1 without, 1 .psdx); name them in an @LIST to take them all the same"
    )


@pytest.mark.parametrize("listed", [b"", b"\n\r\n", b"\0"])
def test_empty_list_is_an_error(listed: bytes) -> None:
    """A list without entries gives no images, and the error names the list."""
    with pytest.raises(InputError, match=r"^no images in '-'; expected"):
        discover(["-"], stdin=io.BytesIO(listed))


def test_no_sources_is_an_error() -> None:
    """Naming nothing at all finds nothing."""
    with pytest.raises(InputError, match="no images in no sources"):
        discover([])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def outcome(folder: Path) -> str:
    """What an unprivileged process gets from `discover`: its paths, or its error."""
    code = (
        "import os, sys\n"
        "from vggfeat.images.sources import discover\n"
        "if os.geteuid() == 0:\n"
        "    os.setuid(65534)\n"
        "try:\n"
        "    manifest = discover([sys.argv[1]])\n"
        "    print(manifest.paths, manifest.sizes.tolist())\n"
        "except FileNotFoundError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_unreadable_folders_are_errors(open_folder: Path) -> None:
    """Folders that may not be read are all named; their images are not silently missing."""
    make(open_folder, "a.jpg", "one/b.jpg", "two/c.jpg", "three/d.jpg")
    (open_folder / "one").chmod(0)
    (open_folder / "two").chmod(0)
    try:
        text = outcome(open_folder)
    finally:
        (open_folder / "one").chmod(0o755)
        (open_folder / "two").chmod(0o755)
    assert text == (
        f"cannot read '{open_folder}/one' (Permission denied), '{open_folder}/two' (Permission "
        "denied); every folder must be readable, or images would be missing from the file"
    )


def test_link_into_a_closed_place_is_an_error(open_folder: Path) -> None:
    """A link to where one may not look may hide a folder; named like an image it is a row."""
    make(open_folder, "images/a.jpg", "closed/in/b.jpg")
    (open_folder / "images/c.jpg").symlink_to("../closed/in/b.jpg")
    (open_folder / "closed").chmod(0)
    try:
        as_row = outcome(open_folder / "images")
        (open_folder / "images/link").symlink_to("../closed/in")
        as_folder = outcome(open_folder / "images")
    finally:
        (open_folder / "closed").chmod(0o755)
    assert as_row == "(b'a.jpg', b'c.jpg') [5, 0]"
    assert as_folder.startswith(f"cannot read '{open_folder}/images/link' (Permission denied)")


def test_unsearchable_folder_keeps_its_rows(open_folder: Path) -> None:
    """Files that can be listed but not looked at stay, with size 0, to fail as rows."""
    make(open_folder, "sub/a.jpg")
    (open_folder / "sub").chmod(0o444)
    try:
        text = outcome(open_folder)
    finally:
        (open_folder / "sub").chmod(0o755)
    assert text == "(b'sub/a.jpg',) [0]"


def test_import_is_light() -> None:
    """The module loads without torch and without Pillow."""
    code = "import sys, vggfeat.images.sources; print({'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert done.stdout == "set()\n"


def test_lists_of_loops_end(tmp_path: Path) -> None:
    """A list of folders through links to themselves reads each once; one may name itself."""
    make(tmp_path, "d/e/x.jpg")
    (tmp_path / "d/self").symlink_to(".")
    (tmp_path / "d/e/up").symlink_to("..")
    lines = [f"{tmp_path}/d/{'self/' * (n % 39)}{'e/up/' * (n % 3)}" for n in range(2000)]
    (tmp_path / "list").write_text("\n".join([*lines, f"{tmp_path}/list"]))
    assert names(discover([f"@{tmp_path}/list"])) == ["d/e/x.jpg", "list"]
