"""Images and caches in an object store: a real one, on this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import pytest
import stores
from command_line import SMALL, assert_one_line, write_images
from command_line import vggfeat as run_vggfeat

import vggfeat
from vggfeat import Settings, Sharding, UpdatePolicy, extract
from vggfeat.errors import (
    CacheMismatchError,
    DecodeError,
    InputError,
    SpaceError,
    TooManyFailuresError,
    UsageError,
)
from vggfeat.images.sources import discover
from vggfeat.storage.paths import remote_scheme

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "pictures"
SETTINGS = Settings(
    layers="conv1_1,conv2_1:max", model="vgg11", size=32, weights="random:0", device="cpu",
    workers=0, precision="float32",
)  # fmt: skip
TWO_WORKERS = [word if word != "0" else "2" for word in SMALL]


@dataclass(frozen=True)
class Place:
    """A store behind a gate, the same images in it and in a folder, and a cache of the folder."""

    folder: Path
    store: Any
    gate: stores.Gate

    def vggfeat(
        self, *words: str | Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        known = stores.environment(self.gate.port)
        return run_vggfeat(*words, cwd=self.folder, env={**known, **(env or {})})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("remote")
    images = write_images(folder / "images", 6)
    write_images(images / "sub" / "deep", 2)
    (images / "sub" / "broken.jpg").write_bytes(b"<html>not found</html>")
    (images / "notes.txt").write_text("no image")
    done = run_vggfeat("extract", "images", *SMALL, "--out", "here.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    with stores.serving() as port:
        store = stores.client(port)
        store.create_bucket(Bucket=BUCKET)
        stores.upload(store, images, BUCKET, "images")
        gate = stores.Gate(port)
        yield Place(folder, store, gate)
        gate.close()


@pytest.fixture(autouse=True)
def _open_gate(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.gate.reset()
    for name, value in stores.environment(place.gate.port).items():
        monkeypatch.setenv(name, value)


def same_rows(one: Path, other: Path) -> None:
    """Paths, sizes, states, digests, checksums and features are equal, byte for byte."""
    with h5py.File(one) as here, h5py.File(other) as there:
        for name in ("path", "size", "state", "sha256", "checksum", "error"):
            if f"images/{name}" in here:
                assert here[f"images/{name}"][:].tobytes() == there[f"images/{name}"][:].tobytes()
        done = here["images/state"][:] == 1
        for layer in here["features"]:
            ours, theirs = here["features"][layer][:][done], there["features"][layer][:][done]
            assert ours.tobytes() == theirs.tobytes()
        assert here["features"].keys() == there["features"].keys()


def test_rows_from_a_bucket_equal_those_from_the_folder(place: Place) -> None:
    """Extracting from a bucket gives the folder's rows byte for byte, each image by one request."""
    done = place.vggfeat("extract", f"s3://{BUCKET}/images", *TWO_WORKERS, "--out", "there.h5")
    assert done.returncode == 0, done.stderr
    assert "txt 1" in done.stderr
    same_rows(place.folder / "here.h5", place.folder / "there.h5")
    fetched = {name: n for name, n in place.gate.requests.items() if "/images/" in name}
    assert len(fetched) == 9
    assert set(fetched.values()) == {1}
    with h5py.File(place.folder / "there.h5") as file:
        assert file.attrs["root"] == f"s3://{BUCKET}/images".encode()


def test_a_request_that_fails_is_made_again(place: Place) -> None:
    """An object that is refused twice for the moment is no failed image."""
    place.gate.stumbles = 2
    settings = replace(SETTINGS, workers=1)
    summary = extract(f"s3://{BUCKET}/images/sub", place.folder / "stumbled.h5", settings)
    assert (summary.done, summary.failed) == (2, 1)
    assert place.gate.given_out("sub/deep/00.png") == 3


def test_a_store_that_goes_away_ends_the_run_and_fails_no_image(place: Place) -> None:
    """Images that an outage hits stay pending, exit 3, and the same run does them later."""
    settings = replace(SETTINGS, batch_size=2)
    asked = (f"s3://{BUCKET}/images", place.folder / "outage.h5", settings)
    place.gate.closed_after = 3
    with pytest.raises(InputError, match=r"03.png' cannot be read: Serv.*; what is done so"):
        extract(*asked)
    with h5py.File(asked[1]) as file:
        assert set(file["images/state"][:].tolist()) == {0, 1}
    place.gate.reset()
    assert extract(*asked).failed == 1
    same_rows(place.folder / "here.h5", asked[1])


def test_a_body_that_is_cut_is_asked_for_again(place: Place) -> None:
    """A body that a proxy shortened twice is no failed image: the third one is whole."""
    place.gate.shortens, place.gate.times = "sub/deep/00.png", 2
    out = place.folder / "cut-twice.h5"
    summary = extract(f"s3://{BUCKET}/images", out, SETTINGS)
    assert (summary.done, summary.failed) == (8, 1)
    assert place.gate.given_out("sub/deep/00.png") == 3
    same_rows(place.folder / "here.h5", out)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (
            "shortens",
            r"\d+ bytes came of an object of \d+ bytes that has not changed; does a proxy",
        ),
        (
            "portal",
            r"\d+ bytes came without the ETag and date of an object; does a proxy or a login",
        ),
    ],
)
def test_what_is_not_the_object_ends_the_run_and_fails_no_image(
    place: Place, trouble: str, words: str
) -> None:
    """Bodies cut short, and a portal's page with status 200, are as a store that is away."""
    out = place.folder / f"{trouble}.h5"
    asked = (f"s3://{BUCKET}/images", out, replace(SETTINGS, batch_size=1))
    setattr(place.gate, trouble, "images/03.png")
    with pytest.raises(InputError, match=rf"images/03.png' cannot be read: {words}.*kept, and"):
        extract(*asked)
    with h5py.File(out) as file:
        assert file["images/state"][:].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    place.gate.reset()
    assert extract(*asked).failed == 1
    same_rows(place.folder / "here.h5", out)


def test_the_command_ends_with_3_on_a_page_in_place_of_an_image(place: Place) -> None:
    """A run in decoding processes ends with exit 3 and one line that names the object."""
    place.gate.portal = "images/00.png"
    words = ["extract", f"s3://{BUCKET}/images", *TWO_WORKERS, "--out", "page.h5"]
    assert_one_line(place.vggfeat(*words), 3, "images/00.png", "without the ETag")


def test_an_object_that_changed_since_it_was_listed_is_told(place: Place) -> None:
    """Objects written anew, deleted or of another size since the listing are rows that say so."""
    stores.upload(place.store, write_images(place.folder / "moving", 4), BUCKET, "moving")
    found = discover([f"s3://{BUCKET}/moving"])
    bodies = [(place.folder / "moving" / f"{number:02}.png").read_bytes() for number in range(4)]
    place.store.put_object(Bucket=BUCKET, Key="moving/00.png", Body=bodies[0] + b" ")
    place.store.delete_object(Bucket=BUCKET, Key="moving/01.png")
    found.mtimes[2] -= 60 * 10**9  # as if this one had been written again a minute later
    reasons = []
    for row in range(3):
        with pytest.raises(DecodeError) as told, found.open(row):
            pass
        reasons.append(str(told.value))
    changed = "changed since it was listed (--update reads it) in the store"
    assert reasons == [changed, "no such object in the store", changed]
    with found.open(3) as stream:
        assert stream.read() == bodies[3]


def test_a_portal_is_no_listing_and_no_list(place: Place) -> None:
    """A page in place of a listing, of what an address is, or of a list: exit 3, and no rows."""
    (place.folder / "names.txt").write_text(f"s3://{BUCKET}/images/00.png\n")
    data = (place.folder / "names.txt").read_bytes()
    place.store.put_object(Bucket=BUCKET, Key="names.txt", Body=data)
    for ending, source in {
        BUCKET: f"s3://{BUCKET}/images",
        "names.txt": f"@s3://{BUCKET}/names.txt",
        "00.png": f"@{place.folder / 'names.txt'}",
    }.items():
        place.gate.portal = ending
        with pytest.raises(InputError, match=r"cannot be read|cannot list"):
            discover([source])
    place.gate.reset()
    assert len(discover([f"@s3://{BUCKET}/names.txt"])) == 1


@pytest.mark.parametrize("trouble", ["shortens", "portal"])
def test_a_cache_that_does_not_come_whole_is_not_kept(place: Place, trouble: str) -> None:
    """A cache of which half comes, or a page, is refused, and fetched again by the next command."""
    address = f"s3://{BUCKET}/whole-{trouble}.h5"
    data = (place.folder / "here.h5").read_bytes()
    place.store.put_object(Bucket=BUCKET, Key=f"whole-{trouble}.h5", Body=data)
    setattr(place.gate, trouble, f"whole-{trouble}.h5")
    with pytest.raises(InputError, match="does a proxy"):
        vggfeat.open(address)
    with pytest.raises(InputError, match="does a proxy"):
        vggfeat.merge([address, place.folder / "here.h5"], place.folder / f"merged-{trouble}.h5")
    place.gate.reset()
    assert len(vggfeat.open(address)) == 9


def test_what_changes_in_a_bucket_is_brought_in(place: Place) -> None:
    """An update finds objects that are new, changed and gone."""
    folder = place.folder / "changing"
    stores.upload(place.store, write_images(folder, 3), BUCKET, "changing")
    asked = (f"s3://{BUCKET}/changing", place.folder / "changing.h5", SETTINGS)
    assert extract(*asked).new_done == 3
    assert extract(*asked, policy=UpdatePolicy(update=True)).new_done == 0
    put = {"Bucket": BUCKET, "Body": (place.folder / "images" / "05.png").read_bytes() + b" "}
    place.store.put_object(Key="changing/new.png", **put)
    place.store.put_object(Key="changing/00.png", **put)
    place.store.delete_object(Bucket=BUCKET, Key="changing/02.png")
    summary = extract(*asked, policy=UpdatePolicy(update=True))
    assert (summary.added, summary.changed, summary.gone, summary.new_done) == (1, 1, 1, 2)


def test_objects_that_cannot_be_had_are_failed_rows(place: Place) -> None:
    """A listed object that is missing, and one that is denied, fail with their reasons."""
    place.store.put_object(Bucket=BUCKET, Key="cold/ice.png", Body=b"x", StorageClass="GLACIER")
    names = [f"s3://{BUCKET}/{name}" for name in ("cold/ice.png", "cold/none.png", "images/00.png")]
    (place.folder / "list.txt").write_text("\n".join(names))
    summary = extract(f"@{place.folder / 'list.txt'}", place.folder / "cold.h5", SETTINGS)
    assert {failure.path: failure.reason for failure in summary.failures} == {
        "cold/ice.png": "permission denied (InvalidObjectState) in the store",
        "cold/none.png": "no such object in the store",
    }
    assert summary.done == 1


def test_listing_is_whole_sorted_and_safe(place: Place) -> None:
    """A folder of more objects than a page has is listed whole; unsafe and hidden names are not."""
    for number in range(40):
        key = f"many/{number % 3}/{number:04}.png"
        place.store.put_object(Bucket=BUCKET, Key=key, Body=b"x" * (number % 5))
    for key in ("many//empty.png", "many/a/../up.png", "many/.hidden/x.png", "many/0/.y.png"):
        place.store.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    place.store.put_object(Bucket=BUCKET, Key="many/", Body=b"")
    found = discover([f"s3://{BUCKET}/many"])
    expected = sorted(f"{number % 3}/{number:04}.png".encode() for number in range(40))
    assert list(found.paths) == expected
    assert found.sizes.tolist() == [int(path[2:6]) % 5 for path in expected]
    assert found.skipped == {"unsafe name": 2, "hidden image": 1, "hidden folder": 1}
    assert min(found.mtimes) > 10**18


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("s3://absent/x", InputError, "cannot list 's3://absent/x': no such bucket; check the"),
        (f"s3://{BUCKET}/none", InputError, f"cannot find 's3://{BUCKET}/none'; expected"),
        (f"s3://{BUCKET}/x.tar", InputError, f"archives are not read.*'s3://{BUCKET}/x.tar'"),
        ("az://box/images", UsageError, "is in an unknown store; expected s3://bucket"),
        ("gs://box/images", UsageError, r"needs gcsfs .*: pip install '.*\[gcs\]'"),
    ],
)
def test_what_cannot_be_listed_is_one_line(
    place: Place, source: str, kind: type[Exception], words: str
) -> None:
    """An absent bucket or folder, an archive, a store unknown or without its package: by name."""
    if source.startswith("gs") and importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    place.store.put_object(Bucket=BUCKET, Key="x.tar", Body=b"x")
    with pytest.raises(kind, match=words):
        discover([source])


def test_here_and_there_are_not_mixed(place: Place) -> None:
    """Sources both in a store and on this machine are refused by name."""
    with pytest.raises(UsageError, match=r"both in an object store and here .*images"):
        discover([str(place.folder / "images"), f"s3://{BUCKET}/images"])


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, ["Unable to locate credentials"]),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, ["Could not connect", "endpoint"]),
    ],
)
def test_a_store_out_of_reach_is_one_line(
    place: Place, env: dict[str, str], words: list[str]
) -> None:
    """Without credentials, or where nothing listens, the command ends with exit 3 and says so."""
    source = f"s3://{BUCKET}/images"
    env = {"AWS_MAX_ATTEMPTS": "1", **env}
    done = place.vggfeat("extract", source, *SMALL, "--out", "never.h5", env=env)
    assert_one_line(done, 3, "cannot list", source, *words)
    assert not (place.folder / "never.h5").exists()


def test_without_the_extra_one_line_says_what_to_install(place: Place) -> None:
    """Where s3fs is not installed, the error names the extra to install."""
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from vggfeat.cli import main\n"
        f"sys.argv = ['vggfeat', 'inspect', 's3://{BUCKET}/a.h5']\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"'s3://{BUCKET}/a.h5' needs s3fs" in done.stderr
    assert "[s3]'" in done.stderr


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        ("s3://bucket/x", "s3"),
        (b"GS://bucket", "gs"),
        ("images", ""),
        ("/a/s3://b", ""),
        ("./s3:/b", ""),
        (Path("s3://bucket"), ""),
        (b"\xff://x", ""),
    ],
)
def test_addresses_are_told_from_paths(path: str | bytes | os.PathLike[str], scheme: str) -> None:
    """Only text that begins with a scheme is an address."""
    assert remote_scheme(path) == scheme


def test_a_cache_is_fetched_once_and_again_when_it_changes(place: Place) -> None:
    """A cache in a bucket is read through a copy, which is fetched when it is new or another."""
    address = f"s3://{BUCKET}/caches/here.h5"

    def put(name: str) -> None:
        data = (place.folder / name).read_bytes()
        place.store.put_object(Bucket=BUCKET, Key="caches/here.h5", Body=data)

    put("here.h5")
    first = vggfeat.open(address)
    assert len(first) == 9
    found = vggfeat.search(address, rows=["00.png"], layers=["conv1_1"], top=2)
    assert len(found.answers[0].hits) == 2
    assert place.gate.given_out("here.h5") == 1
    extract(place.folder / "images" / "sub", place.folder / "part.h5", SETTINGS)
    put("part.h5")
    assert len(vggfeat.open(address)) == 3
    assert place.gate.given_out("here.h5") == 2
    assert first["conv1_1"].shape == (9, 64)  # mapped only now
    os.utime(Path(first.path).parent, (1, 1))
    put("cold.h5")
    assert len(vggfeat.open(address)) == 3
    kept = list(Path(os.environ["XDG_CACHE_HOME"], "vggfeat", "remote").rglob("here.h5"))
    assert len(kept) == 2
    assert not Path(first.path).exists()


def test_a_fetch_is_told(place: Place) -> None:
    """A command says on stderr what it fetches before it shows the cache."""
    place.store.put_object(
        Bucket=BUCKET, Key="told.h5", Body=(place.folder / "here.h5").read_bytes()
    )
    done = place.vggfeat("inspect", f"s3://{BUCKET}/told.h5")
    assert done.returncode == 0, done.stderr
    assert f"vggfeat: fetching s3://{BUCKET}/told.h5, " in done.stderr
    assert "sub/broken.jpg" in done.stdout


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"s3://{BUCKET}/caches/none.h5", "none.h5' does not exist; expected a cache"),
        ("s3://absent/none.h5", "cannot be opened: no such bucket"),
    ],
)
def test_a_cache_that_is_not_there_is_named(place: Place, address: str, words: str) -> None:
    """A cache that a bucket does not have, and a bucket that is absent, are missing input."""
    del place
    with pytest.raises(InputError, match=words):
        vggfeat.open(address)


def test_an_output_is_put_there_when_it_is_complete(place: Place) -> None:
    """A run that is cut short puts nothing, the next one the whole cache, the third nothing."""
    address = f"s3://{BUCKET}/out/feats.h5"
    scratch = str(place.folder / "scratch")
    part = replace(SETTINGS, on_error="stop", batch_size=1)
    asked = (place.folder / "images", address)
    with pytest.raises(TooManyFailuresError):
        extract(*asked, part, scratch=scratch)
    assert keys(place, "out/") == []
    settings = replace(SETTINGS, batch_size=1)
    summary = extract(*asked, settings, scratch=scratch)
    assert (summary.out, summary.done, summary.new_done) == (address, 8, 2)
    assert keys(place, "out/") == ["out/feats.h5"]
    work = place.folder / "scratch" / "s3" / BUCKET / "out" / "feats.h5"
    same_rows(place.folder / "here.h5", work)
    body = place.store.get_object(Bucket=BUCKET, Key="out/feats.h5")["Body"].read()
    assert body == work.read_bytes()
    place.gate.reset()
    assert extract(*asked, settings, scratch=scratch).new_done == 0
    assert not [name for name in place.gate.requests if name.startswith(("PUT", "GET /pict"))]


def test_another_machine_goes_on_with_what_is_there(place: Place) -> None:
    """Without a scratch copy the object is fetched; where both have changed, it is refused."""
    address = f"s3://{BUCKET}/two/feats.h5"
    images = place.folder / "two"
    write_images(images, 3)
    one, two = str(place.folder / "scratch-one"), str(place.folder / "scratch-two")
    assert extract(images, address, SETTINGS, scratch=one).new_done == 3
    (images / "03.png").write_bytes((images / "00.png").read_bytes())
    second = extract(images, address, SETTINGS, scratch=two, policy=UpdatePolicy(update=True))
    assert (second.new_done, second.done) == (1, 4)
    third = extract(images, address, SETTINGS, scratch=one)
    assert (third.new_done, third.done) == (0, 4)
    work = Path(one, "s3", BUCKET, "two", "feats.h5")
    work.touch()
    (images / "04.png").write_bytes((images / "01.png").read_bytes())
    assert (
        extract(images, address, SETTINGS, scratch=two, policy=UpdatePolicy(update=True)).done == 5
    )
    with pytest.raises(CacheMismatchError, match="delete that to resume from what is stored now"):
        extract(images, address, SETTINGS, scratch=one)


def test_an_upload_is_read_back(place: Place) -> None:
    """What does not come back as it went is an error of the disk's kind; the next run mends it."""
    address = f"s3://{BUCKET}/spoilt/feats.h5"
    asked = (place.folder / "images", address, SETTINGS)
    place.gate.garbles = "feats.h5"
    with pytest.raises(SpaceError, match=r"reads back with SHA-256 .*, expected"):
        extract(*asked)
    place.gate.reset()
    assert extract(*asked).new_done == 0
    assert len(vggfeat.open(address)) == 9


def test_shards_are_put_there_one_by_one_and_the_manifest_last(place: Place) -> None:
    """A store gets each shard that is complete, and shows the cache when all of them are."""
    address = f"s3://{BUCKET}/split/"
    settings = replace(SETTINGS, batch_size=2)
    asked = (place.folder / "images", address, settings)
    half = extract(*asked, sharding=Sharding(shards=3, share="0/3"))
    assert half.pending == 0
    (first,) = keys(place, "split/")
    assert first.startswith("split/shard-00000-")
    with pytest.raises(InputError, match=r"is not a cache yet: it has no manifest.json"):
        vggfeat.open(address)
    place.gate.reset()
    whole = extract(*asked)
    assert (whole.rows, whole.done, whole.failed) == (9, 8, 1)
    assert sum(name.startswith("PUT") for name in place.gate.requests) == 3
    assert keys(place, "split/")[0] == "split/manifest.json"
    assert len(keys(place, "split/")) == 4
    there, here = vggfeat.open(address), vggfeat.open(place.folder / "here.h5")
    assert there["conv1_1"][there.done].tobytes() == here["conv1_1"][here.done].tobytes()
    other = extract(*asked, scratch=str(place.folder / "scratch-three"))
    assert (other.new_done, other.done) == (0, 8)


@pytest.mark.parametrize(
    ("out", "kind", "words"),
    [
        ("s3://absent/feats.h5", SpaceError, "output 's3://absent/feats.h5' cannot be reached: no"),
        (f"s3://{BUCKET}/images", UsageError, "is a folder in the store, requested as a file"),
        (f"s3://{BUCKET}", UsageError, "names no object; expected s3://bucket/name.h5"),
        (f"s3://{BUCKET}/a/../b.h5", UsageError, "names no object"),
        ("az://box/feats.h5", UsageError, "is in an unknown store"),
        ("feats.h5", UsageError, "--scratch is for outputs in an object store"),
    ],
)
def test_an_output_that_cannot_be_is_refused_first(
    place: Place, out: str, kind: type[Exception], words: str
) -> None:
    """An absent bucket, a folder, a name that is none: refused before an image is listed."""
    with pytest.raises(kind, match=words):
        extract(place.folder / "no such images", out, SETTINGS, scratch=str(place.folder / "s"))


def test_what_cannot_be_done_in_a_store_is_said(place: Place) -> None:
    """Repairing a copy, and derived caches as objects, are refused; verifying reads the copy."""
    data = (place.folder / "here.h5").read_bytes()
    place.store.put_object(Bucket=BUCKET, Key="sound.h5", Body=data)
    address = f"s3://{BUCKET}/sound.h5"
    assert not vggfeat.verify(address).bad
    with pytest.raises(UsageError, match="repair the file it was put there from"):
        vggfeat.verify(address, repair=True)
    settings = vggfeat.ReduceSettings(dims=2)
    with pytest.raises(UsageError, match="only extract writes to an object store"):
        vggfeat.reduce(address, f"s3://{BUCKET}/short.h5", settings)


def keys(place: Place, prefix: str) -> list[str]:
    found = place.store.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [one["Key"] for one in found.get("Contents", [])]
