"""What docs/OPERATIONS.md tells an operator to do: done, with its paths moved to a folder here."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from command_line import write_images
from documents import blocks
from exposition import figures
from killing import contents
from places import REPOSITORY
from typer.main import get_command

from vggfeat.cache.format import Provenance, RowState, image_fields
from vggfeat.cache.header import read_header
from vggfeat.cache.identity import Identity
from vggfeat.cache.layout import lay_out
from vggfeat.cache.reader import FeatureCache
from vggfeat.cli import app
from vggfeat.cli import monitoring as watch
from vggfeat.core.records import Progress
from vggfeat.core.settings import Settings
from vggfeat.extraction.monitoring import metrics_text
from vggfeat.storage.locks import hold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = "docs/OPERATIONS.md"
TEXT = " ".join((REPOSITORY / PAGE).read_text().split())  # lines may break anywhere
LAYERS = "--layers conv5_3,fc7"  # what the page asks for; here it is something small
SMALL = (
    "--layers conv1_1 --model vgg11 --weights random:0 --size 32 --device cpu --workers 0 "
    "--batch-size 1 --precision float32"
)
IMAGES = 4
MANY = 400
PROGRAMS = os.path.dirname(sys.executable)
TOOLS = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where those of the system are, for any user


@dataclass(frozen=True, slots=True)
class Machine:
    """A folder that stands for the file system of the page."""

    root: Path

    def here(self, text: str) -> str:
        """The page's text with the paths and settings of this machine."""
        text = re.sub(r"(?<![\w.$/])/(srv|var)/", lambda found: f"{self.root}/{found[1]}/", text)
        return text.replace("/opt/vggfeat/bin", PROGRAMS).replace(LAYERS, SMALL)

    def path(self, name: str) -> Path:
        """Where the page's `name` lies here."""
        return Path(self.here(name))

    @property
    def cache(self) -> Path:
        return self.path("/var/lib/vggfeat/photos.h5")

    @property
    def photos(self) -> Path:
        return self.path("/srv/photos")

    @property
    def log(self) -> Path:
        return self.path("/var/log/vggfeat/photos.log")

    @property
    def metrics(self) -> Path:
        return self.path("/var/lib/node_exporter/photos.prom")

    def exit_codes(self) -> list[int]:
        """Those of all runs so far, from the log."""
        return [int(code) for code in re.findall(r"vggfeat ends exit_code=(\d+)", self.log_text())]

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def files(self) -> set[Path]:
        return {path for path in self.root.rglob("*") if path.is_file()}


def make_machine(root: Path, images: int = IMAGES) -> Machine:
    machine = Machine(root)
    write_images(machine.photos, IMAGES)
    (machine.photos / "archive").mkdir()
    (machine.photos / "03.png").rename(machine.photos / "archive" / "03.png")
    for number in range(IMAGES, images):
        os.link(machine.photos / f"{number % 3:02}.png", machine.photos / f"c{number}.png")
    for name in ("lib/vggfeat", "log/vggfeat", "lib/node_exporter", "cache/vggfeat", "home"):
        (root / "var" / name).mkdir(parents=True)
    (root / "srv" / "backup").mkdir()
    return machine


def cron_environment(machine: Machine) -> dict[str, str]:
    """All that cron gives to a command; and one thread, for tiny maps only wait for more."""
    home = str(machine.root / "var" / "home")
    given = {"HOME": home, "LOGNAME": "vggfeat", "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    return {**given, "OMP_NUM_THREADS": "1"}


def shell(machine: Machine, command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the page's `command` with cron's shell, environment and folder."""
    environment = cron_environment(machine)
    return subprocess.run(
        ["/bin/sh", "-c", machine.here(command)], env=environment, cwd=environment["HOME"],
        input=stdin, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def crontab() -> list[tuple[str, str]]:
    """Command and standard input of each line, as cron takes them from it."""
    (block,) = blocks(PAGE, "crontab")
    lines = [line for line in block.splitlines() if not re.match(r"\w+ *=", line)]
    entries = []
    for line in lines:
        assert len(line) < 998, "cron takes no longer lines"
        assert re.match(r"([\d*,/-]+ ){5}\S", line), line
        command, *rest = re.split(r"(?<!\\)%", line.split(" ", 5)[5])
        entries.append((command.replace("\\%", "%"), "\n".join(rest)))
    return entries


def unit(kind: str) -> str:
    """The systemd unit of that kind."""
    (text,) = [block for block in blocks(PAGE, "ini") if f".{kind}\n" in block.splitlines(True)[0]]
    return text


def unit_values(text: str, name: str) -> list[str]:
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def section(title: str, page: str = PAGE) -> str:
    parts = re.split(r"^## ", (REPOSITORY / page).read_text(), flags=re.MULTILINE)
    (found,) = [part for part in parts if part.startswith(f"{title}\n")]
    return found


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their heads."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


def tool(name: str) -> str:
    """Where a program of the system is; without it the test is skipped."""
    found = shutil.which(name, path=TOOLS)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "waited for a minute in vain"
        time.sleep(0.005)


def state_counts(path: Path) -> list[int]:
    if not path.exists():
        return [0] * len(RowState)
    counts = np.bincount(FeatureCache(path).state, minlength=len(RowState))
    return [int(count) for count in counts]


def done_rows(path: Path) -> int:
    return state_counts(path)[RowState.DONE]


@contextlib.contextmanager
def under_way(words: list[str], machine: Machine) -> Iterator[subprocess.Popen[str]]:
    """A run beside the test, which does not outlive it even if it was stopped."""
    run = subprocess.Popen(words, env=cron_environment(machine), text=True)
    try:
        yield run
        run.wait(timeout=600)
    finally:
        run.kill()
        run.wait()


def freeze(process: subprocess.Popen[str]) -> None:
    """Stops a process, and returns when it has stopped."""
    process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{process.pid}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] in "TZ")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return make_machine(tmp_path)


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine on which the crontab's run has made the cache; to look at, not to change."""
    machine = make_machine(tmp_path_factory.mktemp("settled"))
    done = shell(machine, *crontab()[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return machine


@pytest.fixture
def moved(settled: Machine, tmp_path: Path) -> Machine:
    """A copy of the settled machine, to be changed."""
    shutil.copytree(settled.root, tmp_path / "copy")  # which keeps the times
    return Machine(tmp_path / "copy")


def test_the_crontab(moved: Machine) -> None:
    """Its line works in cron's environment, does only what is new, and is silent about 75 alone."""
    (command, stdin), (verify, more) = crontab()
    assert (stdin, more) == ("", "")
    assert moved.exit_codes() == [0]
    assert done_rows(moved.cache) == IMAGES
    shutil.copy(moved.photos / "00.png", moved.photos / "new.png")
    for left in (1, 0):
        done = shell(moved, command)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert f"new_done={left} new_failed=0" in moved.log_text().splitlines()[-1]
    before = moved.cache.read_bytes()
    with hold(str(moved.cache)):
        done = shell(moved, command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert moved.cache.read_bytes() == before
    moved.photos.rename(moved.root / "away")
    done = shell(moved, command)
    assert done.returncode != 0
    assert f"vggfeat: cannot find '{moved.photos}'" in done.stdout
    assert moved.cache.read_bytes() == before
    assert moved.exit_codes() == [0, 0, 0, 75, 3]
    done = shell(moved, verify)
    assert done.returncode == 0
    assert f"{IMAGES + 1} rows ({IMAGES + 1} done" in done.stdout


def test_a_folder_that_is_missing_is_images_removed(moved: Machine) -> None:
    """A mount that is away is refused; without the limit it costs its rows, which come back."""
    command = crontab()[0][0]
    (moved.photos / "archive").rename(moved.root / "away")
    before = moved.cache.read_bytes()
    done = shell(moved, command)
    assert done.returncode != 0
    assert "Is a folder not mounted?" in done.stdout
    assert moved.exit_codes()[-1] == 3
    assert moved.cache.read_bytes() == before
    without = command.replace(" --max-removed 1%", "")
    assert without != command
    assert shell(moved, without).returncode == 0
    assert state_counts(moved.cache) == [0, IMAGES - 1, 0, 1]
    (moved.root / "away").rename(moved.photos / "archive")
    assert shell(moved, command).returncode == 0
    assert f"done={IMAGES} failed=0 pending=0 new_done=1 " in moved.log_text()


def test_the_service(machine: Machine) -> None:
    """What it starts works in its environment alone, and writes where the unit lets it."""
    text = unit("service")
    (start,) = unit_values(text, "ExecStart")
    assert not re.search(r"%(?!%)", start.replace("%%", "")), "a specifier of systemd's"
    words = shlex.split(machine.here(start.replace("%%", "%")))
    environment = dict(
        setting.split("=", 1)
        for line in unit_values(text, "Environment")
        for setting in shlex.split(machine.here(line))
    )
    folders = [f"/var/lib/{name}" for name in unit_values(text, "StateDirectory")]
    folders += [f"/var/log/{name}" for name in unit_values(text, "LogsDirectory")]
    folders += [f"/var/cache/{name}" for name in unit_values(text, "CacheDirectory")]
    folders += " ".join(unit_values(text, "ReadWritePaths")).split()
    assert unit_values(text, "ProtectSystem") == ["strict"]
    before = machine.files()
    done = subprocess.run(
        words, cwd="/", capture_output=True, text=True, check=False, timeout=600,
        env={**cron_environment(machine), **environment},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    made = machine.files() - before
    assert {machine.cache, machine.log, machine.metrics} <= made
    writable = [machine.path(folder) for folder in folders]
    assert Path(environment["XDG_CACHE_HOME"]) in writable
    assert not [path for path in made if not any(path.is_relative_to(top) for top in writable)]


def test_the_service_and_the_crontab_do_the_same() -> None:
    """Both start the same command, and take the same exit codes for no error."""
    (start,) = unit_values(unit("service"), "ExecStart")
    command = crontab()[0][0]
    assert shlex.join(shlex.split(start.replace("%%", "%"))) in command
    assert unit_values(unit("service"), "SuccessExitStatus") == ["75 143"]
    assert unit_values(unit("service"), "KillSignal") == ["SIGTERM"]
    assert "[ $? -eq 75 ]" in command


def test_systemd_takes_the_units(machine: Machine) -> None:
    """`systemd-analyze` finds no fault with them, and the timer's times are the crontab's."""
    analyze = tool("systemd-analyze")
    names = []
    for kind in ("service", "timer"):
        names.append(str(machine.root / f"vggfeat-photos.{kind}"))
        Path(names[-1]).write_text(machine.here(unit(kind)))
    found = subprocess.run(
        [analyze, "verify", "--man=no", *names], capture_output=True, text=True, check=False
    )
    complaints = [line for line in found.stderr.splitlines() if "vggfeat" in line]
    assert not complaints
    (times,) = unit_values(unit("timer"), "OnCalendar")
    hours = re.fullmatch(r"\*-\*-\* 0(\d)\.\.0(\d):0(\d):00", times)
    assert hours
    assert f"\n{hours[3]} {hours[1]}-{hours[2]} * * * " in blocks(PAGE, "crontab")[0]
    subprocess.run([analyze, "calendar", times], capture_output=True, check=True)


def logrotate_words(machine: Machine) -> list[str]:
    """The command for one rotation by the page's configuration, or a skip."""
    program = tool("logrotate")
    (text,) = blocks(PAGE, "logrotate")
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    mine = machine.here(text).replace("su vggfeat vggfeat", f"su {user} {group}")
    assert mine != machine.here(text)
    rules = machine.root / "rotation"
    rules.write_text(mine)
    rules.chmod(0o644)
    return [program, "-f", "-s", str(machine.root / "rotated"), str(rules)]


def move_away(machine: Machine) -> None:
    machine.log.rename(f"{machine.log}.1")


def rotate(machine: Machine) -> None:
    words = logrotate_words(machine)
    plan = subprocess.run(
        [words[0], "-d", *words[1:]], capture_output=True, text=True, check=True
    ).stderr
    assert "error" not in plan.lower()
    assert f"considering log {machine.log}" in plan
    subprocess.run(words, capture_output=True, check=True)


@pytest.mark.parametrize("how", [move_away, rotate])
def test_a_log_that_is_moved_away(tmp_path: Path, how: Callable[[Machine], None]) -> None:
    """In the middle of a run the log moves; what comes later is in a new file, nothing is lost."""
    machine = make_machine(tmp_path, MANY)
    if how is rotate:
        logrotate_words(machine)
    words = shlex.split(machine.here(crontab()[0][0].partition("(")[2].partition(" 2>&1")[0]))
    with under_way(words, machine) as run:
        eventually(lambda: "RANDOM WEIGHTS" in machine.log_text())  # said before the first image
        freeze(run)
        how(machine)
        run.send_signal(signal.SIGCONT)
    assert run.returncode == 0
    moved = Path(f"{machine.log}.1").read_text()
    assert "begins" in moved
    assert "ends" not in moved
    assert "begins" not in machine.log_text()
    assert machine.exit_codes() == [0]


def names_in(text: bytes | str) -> set[str]:
    return set(re.findall(r"\bvggfeat_\w+", text if isinstance(text, str) else text.decode()))


def test_the_table_of_metrics(settled: Machine) -> None:
    """It lists what the program writes, when, and with which labels, and nothing else."""
    begun = names_in(metrics_text("x"))
    under_way = names_in(metrics_text("x", progress=Progress(1, 0, 2)))
    ended = figures(settled.metrics)
    table = {row[0].strip("`"): row[1:] for row in cells(section("Prometheus"))}
    listed: dict[str, set[str]] = {}
    for name, (_, when) in table.items():
        listed.setdefault(when, set()).add(name)
    assert listed["always"] == begun
    assert listed["every 15 s, and at the end"] == under_way - begun
    assert listed["at the end"] == {name for name, _ in ended} - under_way
    assert watch._METRICS_EVERY_SECONDS == 15
    for name, (meaning, _) in table.items():
        labels = [labels for written, labels in ended if written == name]
        assert labels, name
        for value in re.findall(r'(?:state|stage)="(\w+)"', " ".join(labels)):
            assert re.search(rf"\b{value}\b", meaning), (name, value)
    assert 'state="asked"' in metrics_text("x", progress=Progress(1, 0, 2)).decode()


def test_a_collector_reads_the_file(settled: Machine) -> None:
    """Prometheus' own tool has no complaint about the file, whose name its collector wants."""
    assert settled.metrics.suffix == ".prom"
    found = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=settled.metrics.read_bytes(),
        capture_output=True, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


def test_rules_use_what_is_written(settled: Machine) -> None:
    """Every metric and label that a rule names is in the file of a run."""
    (rules,) = blocks(PAGE, "yaml")
    written = settled.metrics.read_text()
    assert names_in(rules)
    assert names_in(rules) <= names_in(written)
    for label in re.findall(r"\{(\w+=\"\w+\")\}", rules):
        assert label in written
    assert re.findall(r"\$labels\.(\w+)", rules) == ["out"] * rules.count("alert:")


SCENES: dict[str, tuple[dict[str, str], dict[str, tuple[str, ...]]]] = {
    "well": ({"updated": "0+300x900", "exit": "0x900", "failed": "3x900"}, {"2d": ()}),
    "killed": (
        {"updated": "0x900", "progress": "1x900"},
        {"50m": (), "2h": ("KilledOrHanging",), "27h": ("KilledOrHanging", "NoRun")},
    ),
    "killed again and again": (
        {"updated": "0x270 81000x400", "progress": "1x900"},
        {"24h": ("KilledOrHanging",)},
    ),
    "always held": (
        {"updated": "0+300x900", "exit": "75x900"},
        {"25h": ("NotWellForADay",)},
    ),
    "too many failures": (
        {"updated": "0+300x900", "exit": "0x100 4x900", "failed": "1x100 5x900"},
        {"7h": (), "9h": ("ExitCode", "FailedImagesRise"), "40h": ("ExitCode", "NotWellForADay")},
    ),
    "mended": (
        {"updated": "0+300x900", "exit": "4x100 _x12 0x800", "failed": "5x100 _x12 1x800"},
        {"8h": ("ExitCode", "NotWellForADay"), "9h30m": ()},
    ),
    "under way": (
        {"updated": "0+300x900", "exit": "0x100 _x200", "failed": "1x100 _x200"},
        {"9h": ()},
    ),
    "under way after a bad one": (
        {"updated": "0+300x900", "exit": "0x50 4x50 _x200", "failed": "1x50 5x50 _x200"},
        {"9h": ("ExitCode", "FailedImagesRise")},
    ),
}  # fmt: skip
SERIES = {
    "updated": "vggfeat_updated_timestamp_seconds",
    "progress": "vggfeat_run_in_progress",
    "exit": "vggfeat_last_exit_code",
    "failed": 'vggfeat_images{state="failed"}',
}


@pytest.mark.parametrize("scene", SCENES)
def test_rules_fire_when_they_should(tmp_path: Path, scene: str) -> None:
    """Prometheus, given the figures of a few days, raises the alerts that they ask for."""
    promtool = tool("promtool")
    series, expected = SCENES[scene]
    (tmp_path / "rules.yml").write_text(blocks(PAGE, "yaml")[0])
    lines = ["rule_files: [rules.yml]", "evaluation_interval: 5m", "tests:", "- interval: 5m"]
    lines += ["  input_series:"]
    for name, values in series.items():
        lines += [f"  - series: '{SERIES[name]}'", f"    values: '{values}'"]
    lines += ["  promql_expr_test:"]
    for moment, alerts in expected.items():
        lines += ["  - expr: 'count by (alertname) (ALERTS{alertstate=\"firing\"})'"]
        lines += [f"    eval_time: {moment}", "    exp_samples:"]
        for name in alerts:
            lines += [f"    - labels: '{{alertname=\"Vggfeat{name}\"}}'", "      value: 1"]
    (tmp_path / "tests.yml").write_text("\n".join(lines) + "\n")
    found = subprocess.run(
        [promtool, "test", "rules", "tests.yml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def test_exit_codes_are_the_readmes() -> None:
    """The table has the README's codes, in its order."""
    here = [row[0] for row in cells(section("Exit codes"))]
    assert here == [row[0] for row in cells(section("Exit codes", "README.md"))]
    assert len(here) == 9


def test_options_are_those_of_the_program() -> None:
    """Every long option on the page is one of vggfeat's, or one of the tools the page names."""
    others = {"--sparse", "--size-only", "--append", "--inplace"}
    others |= {"--help"}  # which Click adds
    others |= {"--collector"}  # node_exporter's, which goes on with a dot
    others |= {"--array", "--gres", "--time", "--requeue"}  # those of Slurm
    commands = {**get_command(app).commands, "": get_command(app)}  # type: ignore[attr-defined] # a group, as apps are
    every = [under for one in commands.values()
             for under in (one, *getattr(one, "commands", {}).values())]  # fmt: skip
    ours = {word for command in every for option in command.params
            for word in (*option.opts, *option.secondary_opts)}  # fmt: skip
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert len(found) > 15
    assert not found - ours - others
    named = set(re.findall(r"`?(?:bin/|`)vggfeat (?:--debug )?([a-z]+)", TEXT))
    assert {"extract", "verify", "merge", "doctor"} <= named <= set(commands)


def test_space_is_what_the_page_says(tmp_path: Path) -> None:
    """The formula gives the size of a file to within the rounding that it admits."""
    each = re.search(r"rows \S \(values of all layers \S 2 \+ longest path \+ (\d+)\) bytes", TEXT)
    assert each
    settings = Settings(layers="conv5_3,fc7")
    for rows, dtype, width in ((1, "float16", 2), (70_000, "float16", 2), (70_000, "float32", 4)):
        identity = Identity(
            "vgg19", "w.pth", "0", "float32", dtype, settings.preprocess(), ("conv5_3", "fc7")
        )
        path = tmp_path / f"{rows}-{dtype}.h5"
        shapes = {"conv5_3": (512,), "fc7": (4096,)}
        making = Provenance(b"/", {"batch_size": 1}, "", "", {})
        lay_out(str(path), rows, 40, shapes=shapes, identity=identity, provenance=making)
        least = rows * ((512 + 4096) * width + 40 + int(each[1]))
        most = least + (len(shapes) + len(image_fields(1))) * 2**20
        assert least <= path.stat().st_size <= most
    assert "each of seven columns" in TEXT
    assert len(image_fields(1)) == 7
    assert 1_000_000 * (4608 * 2 + 40 + int(each[1])) == pytest.approx(9.5e9, rel=0.01)


def test_checkpoints_come_as_often_as_the_page_says() -> None:
    """The page's seconds are the default."""
    (seconds,) = re.findall(r"every (\d+) seconds \(`--checkpoint-seconds`\)", TEXT)
    assert float(seconds) == Settings(layers="fc7").checkpoint_seconds


@dataclass(frozen=True, slots=True)
class Cut:
    """A run that was killed, copies taken while it was at work, and a run that was let be.

    Attributes:
        machine: where; the page's copy of its cache is in place, not looked at yet.
        words: the command.
        reference: the cache of the run that was let be.
        torn: a copy whose features are older than its states.
    """

    machine: Machine
    words: list[str]
    reference: Path
    torn: Path

    def run(self, out: Path) -> None:
        """The same run into another cache."""
        words = [str(out) if word == str(self.machine.cache) else word for word in self.words]
        subprocess.run(words, env=cron_environment(self.machine), check=True, timeout=600)

    def go_on_with(self, copy: Path) -> None:
        """The same run again, on a copy, and what it must come to."""
        self.run(copy)
        assert contents(copy) == contents(self.reference)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    machine = make_machine(tmp_path_factory.mktemp("cut"), MANY)
    words = [f"{PROGRAMS}/vggfeat", "extract", str(machine.photos), "--out", str(machine.cache)]
    words += [*SMALL.split(), "--quiet"]
    cut = Cut(machine, words, machine.root / "reference.h5", machine.root / "torn.h5")
    cut.run(cut.reference)
    watched = ["--checkpoint-seconds", "0", "--metrics-file", str(machine.metrics)]
    with under_way([*words, *watched], machine) as run:
        eventually(lambda: done_rows(machine.cache) > 5)
        freeze(run)
        early, seen = machine.cache.read_bytes(), done_rows(machine.cache)
        run.send_signal(signal.SIGCONT)
        assert shell(machine, copy_blocks()[1].splitlines()[0]).returncode == 0
        eventually(lambda: done_rows(machine.cache) > seen + 5)
        freeze(run)
        late = machine.cache.read_bytes()
        run.kill()
    assert run.returncode == -signal.SIGKILL
    runs = read_header(str(machine.cache)).runs
    features = min(run.offset for name, run in runs.items() if name.startswith("features/"))
    cut.torn.write_bytes(late[:features] + early[features:])
    return cut


def copy_blocks() -> list[str]:
    """The page's two ways to copy: under the lock, and with a look at every row."""
    found = re.findall(r"```sh\n(.*?)```", section("Copies and backups"), flags=re.DOTALL)
    assert len(found) == 2
    return found


def test_a_copy_taken_while_a_run_writes(cut: Cut) -> None:
    """The page's recipe makes of it a cache from which a run comes to the same bytes."""
    copy = cut.machine.path("/srv/backup/photos.h5")
    look = shell(cut.machine, copy_blocks()[1].splitlines()[1])
    assert look.returncode == 0, look.stderr
    assert 0 < done_rows(copy) < MANY
    cut.go_on_with(copy)


def test_rows_that_were_copied_too_early_are_found(cut: Cut) -> None:
    """A copy with states newer than features is no use as it is; repaired, it is."""
    repair = copy_blocks()[1].splitlines()[1].replace("/srv/backup/photos.h5", str(cut.torn))
    before = done_rows(cut.torn)
    look = shell(cut.machine, repair.replace(" --repair", ""))
    assert look.returncode == 5
    assert "rows are bad" in look.stderr
    assert shell(cut.machine, repair).returncode == 0
    assert 0 < done_rows(cut.torn) < before
    cut.go_on_with(cut.torn)


def test_what_a_killed_run_leaves_in_its_metrics(cut: Cut) -> None:
    """After SIGKILL the file says that a run is under way, and has no end."""
    found = {name: value for (name, _), value in figures(cut.machine.metrics).items()}
    assert found["vggfeat_run_in_progress"] == 1
    assert "vggfeat_last_exit_code" not in found
    assert "vggfeat_images" not in found


def test_a_copy_under_the_lock(moved: Machine) -> None:
    """It is the cache, byte for byte; while a run is under way the last copy stays as it is."""
    command = copy_blocks()[0]
    assert "with hold(cache):\n    shutil.copyfile(" in command  # and not after it
    copy = moved.path("/srv/backup/photos.h5")
    copy.write_text("the last one")
    with hold(str(moved.cache)):
        refused = shell(moved, command)
    assert refused.returncode != 0
    assert "LockedError" in refused.stderr
    assert copy.read_text() == "the last one"
    done = shell(moved, command)
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == moved.cache.read_bytes()
    assert list(copy.parent.iterdir()) == [copy]


def test_flock_is_another_lock(moved: Machine) -> None:
    """A run does not see a lock by flock, as the page warns."""
    assert "`flock` does not do it" in TEXT
    with open(f"{moved.cache}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert shell(moved, crontab()[0][0]).returncode == 0
    assert moved.exit_codes() == [0, 0]


def test_moving_images_keeps_their_rows(moved: Machine) -> None:
    """In another folder, and with other times by --by-digest, nothing is computed again."""
    first, second = re.findall(r"```sh\n(.*?)```", section("Moving"), flags=re.DOTALL)
    before = contents(moved.cache)
    for commands in (first, second):
        done = shell(moved, f"set -eu\n{commands}")
        assert done.returncode == 0, done.stderr
        assert "nothing left to do" in done.stdout
        assert contents(moved.cache) == before
    assert not moved.photos.exists()


def test_lost_times_cost_all_rows_without_by_digest(moved: Machine) -> None:
    """What the page says --by-digest is for happens without it."""
    lines = section("Moving").splitlines()
    (command,) = [line for line in lines if line.endswith("--update --by-digest")]
    shutil.copytree(moved.photos, moved.path("/srv/album"), copy_function=shutil.copyfile)
    done = shell(moved, command.replace(" --by-digest", ""))
    assert f" {IMAGES} changed" in done.stdout


def test_merging(moved: Machine) -> None:
    """The page's command makes one cache of two."""
    (command,) = re.findall(r"```sh\n(.*?)```", section("Merging"), flags=re.DOTALL)
    shutil.copy(moved.cache, moved.path("/var/lib/vggfeat/a.h5"))
    shutil.copy(moved.cache, moved.path("/var/lib/vggfeat/b.h5"))
    done = shell(moved, command)
    assert done.returncode == 0, done.stderr
    assert contents(moved.path("/var/lib/vggfeat/all.h5")) == contents(moved.cache)


def test_offline(machine: Machine) -> None:
    """With VGGFEAT_OFFLINE=1 missing weights are exit 3, and the file is named."""
    assert "With `VGGFEAT_OFFLINE=1` nothing is ever fetched" in TEXT
    command = machine.here(f"{PROGRAMS}/vggfeat extract /srv/photos {LAYERS} --out /var/x.h5 -q")
    command = command.replace("--weights random:0 ", "")
    cache = machine.root / "var" / "cache"
    done = shell(machine, f"VGGFEAT_OFFLINE=1 XDG_CACHE_HOME={cache} {command}")
    assert done.returncode == 3
    assert "VGGFEAT_OFFLINE is set" in done.stderr
    assert f"{cache}/torch/hub/checkpoints/vgg11-" in done.stderr
    with contextlib.suppress(FileNotFoundError):
        assert not list((cache / "torch" / "hub" / "checkpoints").glob("*.pth"))
