"""./lab and vm/provision, as the one who types them sees them; and the lists that they install from."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]
PLAIN = {"PATH": "/usr/bin:/bin"}


def lab(checkout: Path, *arguments: str, cwd: Path | None = None) -> Done:
    home = checkout.parent
    command = [str(checkout / "lab"), *arguments]
    return subprocess.run(command, cwd=cwd or home, env=PLAIN | {"HOME": str(home)}, capture_output=True, text=True, check=False, timeout=250)


def bare_checkout(folder: Path) -> Path:
    """./lab with nothing to install: its set-up then asks nothing of the network."""
    checkout = folder / "the kit"
    for path in ("lab", "vm/provision"):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, checkout / path)
    for lock in ("requirements.lock", "requirements-fuse.lock"):
        (checkout / lock).write_text("")
    (checkout / "vm/packages").write_text("")
    (checkout / "kernel_lab").mkdir()
    (checkout / "kernel_lab/__init__.py").write_text("HERE = True\n")
    return checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return bare_checkout(tmp_path)


@pytest.fixture(scope="module")
def first_use(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A checkout, and what its first use said to a user who keeps things private."""
    checkout = bare_checkout(tmp_path_factory.mktemp("ready"))
    command = ["sh", "-c", 'umask 077; exec "$0" "$@"', checkout / "lab", "python", "-c", "import kernel_lab; print(kernel_lab.HERE)"]
    return checkout, subprocess.run(command, cwd="/", env=PLAIN | {"HOME": str(checkout.parent)}, capture_output=True, text=True, check=False)


@pytest.fixture
def ready(first_use: tuple[Path, Done]) -> Path:
    """A checkout that is set up already, for the tests that leave it as it is."""
    return first_use[0]


MAKING = "making the Python environment"


def test_help_names_every_command_and_sets_nothing_up(checkout: Path) -> None:
    for asked in ([], ["help"], ["--help"]):
        done = lab(checkout, *asked)
        assert done.returncode == 0
        assert set(re.findall(r"^  (\w+) ", done.stdout, re.M)) == {"up", "test", "run", "vm", "klab", "python", "build", "help"}
    assert not (checkout / ".venv").exists()


def test_an_unknown_command_is_one_clear_line_and_exit_status_2(checkout: Path) -> None:
    done = lab(checkout, "destroy")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kernel_lab: unknown command 'destroy' (./lab help lists them)\n"
    assert not (checkout / ".venv").exists()


@pytest.mark.slow
def test_the_first_use_sets_up_and_the_second_does_not(first_use: tuple[Path, Done]) -> None:
    checkout, first = first_use
    assert (first.returncode, first.stdout) == (0, "True\n"), first.stderr
    assert first.stderr.count(MAKING) == 1
    second = lab(checkout, "python", "-c", "print(2)")
    assert (second.returncode, second.stdout, second.stderr) == (0, "2\n", "")


def test_everybody_can_read_the_environment_whatever_its_maker_has_for_a_mask(ready: Path) -> None:
    made = [path for path in (ready / ".venv").rglob("*") if not path.is_symlink() and "__pycache__" not in path.parts]
    assert [path for path in made if not path.stat().st_mode & 0o004] == []


def test_arguments_exit_status_and_folder_are_the_callers(ready: Path, tmp_path: Path) -> None:
    show = "import os, sys; print(os.getcwd(), sys.argv[1:]); sys.exit(7)"
    done = lab(ready, "python", "-c", show, "two words", "*", cwd=tmp_path)
    assert done.returncode == 7
    assert done.stdout == f"{tmp_path} ['two words', '*']\n"


def test_it_is_found_through_a_link_from_anywhere(ready: Path, tmp_path: Path) -> None:
    link = tmp_path / "lab"
    link.symlink_to(ready / "lab")
    show = "import kernel_lab; print(kernel_lab.__file__)"
    done = subprocess.run([link, "python", "-c", show], cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout == f"{ready}/kernel_lab/__init__.py\n"


def test_the_kits_command_is_on_the_path_of_what_it_starts(ready: Path) -> None:
    done = lab(ready, "python", "-c", "import shutil; print(shutil.which('klab'), shutil.which('python'))")
    assert done.stdout == f"{ready}/.venv/bin/klab {ready}/.venv/bin/python\n"


@pytest.mark.slow
def test_another_list_of_requirements_makes_the_environment_anew(checkout: Path) -> None:
    lab(checkout, "python", "-c", "")
    old = checkout / ".venv/old"
    old.touch()
    assert MAKING not in lab(checkout, "python", "-c", "").stderr
    (checkout / "requirements.lock").write_text("# another\n")
    assert MAKING in lab(checkout, "python", "-c", "").stderr
    assert not old.exists()


@pytest.mark.slow
def test_an_environment_that_was_half_made_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").write_text("not a Python\n")
    done = lab(checkout, "python", "-c", "print('whole')")
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


@pytest.mark.slow
def test_a_failed_installation_says_so_and_is_tried_again(checkout: Path) -> None:
    (checkout / "requirements.lock").write_text("== no requirement\n")
    for _ in range(2):
        done = lab(checkout, "python", "-c", "print('never')")
        assert (done.returncode, done.stdout) == (1, "")
        assert "Invalid requirement" in done.stderr
        assert "pip could not install requirements.lock" in done.stderr


@pytest.mark.slow
def test_what_cannot_be_compiled_is_left_out(checkout: Path) -> None:
    (checkout / "requirements-fuse.lock").write_text("== no requirement\n")
    done = lab(checkout, "python", "-c", "print('all else')")
    assert (done.returncode, done.stdout) == (0, "all else\n")
    assert "there is no AUFS in user space" in done.stderr


@pytest.mark.slow
def test_two_at_once_set_up_once(checkout: Path) -> None:
    command = [checkout / "lab", "python", "-c", "print('both')"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=250) for process in both]
    assert [out for out, _ in said] == ["both\n", "both\n"], said
    assert sum(err.count(MAKING) for _, err in said) == 1, said


class Machine:
    """A machine with an apt of our own: what it has, what its release has, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "vm").mkdir()
        shutil.copy(ROOT / "vm/provision", folder / "vm/provision")
        self.write("dpkg-query", f'grep -qx "$4" {folder}/installed && echo installed')
        self.write("apt-cache", f'grep -qx "$2" {folder}/released')
        for name in ("installed", "released"):
            (folder / name).write_text("")
        self.apt_get()

    def write(self, command: str, script: str) -> None:
        file = self.folder / "bin" / command
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def apt_get(self, *, update: int = 0, install: int = 0, simulate: str = "") -> None:
        """What it answers to `update`, to `install`, and to the question what an installation would do."""
        cases = f"*' -s '*) {simulate or ':'} ;; *update*) {self.log}; exit {update} ;; *) {self.log}; exit {install} ;;"
        self.write("apt-get", f'case " $* " in {cases} esac')

    @property
    def log(self) -> str:
        return f'echo "$DEBIAN_FRONTEND $*" >>{self.folder}/log'

    def provision(self, packages: str, *uses: str) -> Done:
        (self.folder / "vm/packages").write_text(packages)
        environment = {"PATH": f"{self.folder}/bin:/usr/bin:/bin"}
        return subprocess.run(["sh", self.folder / "vm/provision", *uses], env=environment, capture_output=True, text=True, check=False)

    def asked(self) -> list[list[str]]:
        """The words of each apt-get that did something, without its options."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        assert all(line.startswith("noninteractive ") for line in lines)
        return [[word for word in line.split()[1:] if word[0] != "-" and "::" not in word] for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_is_installed_is_not_asked_for(machine: Machine) -> None:
    (machine.folder / "installed").write_text("tree\nless\n")
    done = machine.provision("tree  # a reason\n# a remark\nless\n")
    assert (done.returncode, done.stdout, done.stderr, machine.asked()) == (0, "", "", [])


def test_what_is_missing_comes_with_one_update_and_one_installation(machine: Machine) -> None:
    (machine.folder / "installed").write_text("less\n")
    (machine.folder / "released").write_text("tree\nless\nfile\n")
    done = machine.provision("tree  # a reason\nless\nfile\n")
    assert done.returncode == 0, done.stderr
    assert machine.asked() == [["update"], ["install", "tree", "file"]]


@pytest.mark.parametrize(
    ("uses", "wanted"),
    [
        ((), ["tree"]),
        (("vm",), ["tree", "kernel", "both"]),
        (("ci",), ["tree", "box", "both"]),
        (("vm", "ci"), ["tree", "kernel", "box", "both"]),
    ],
)
def test_what_is_for_one_use_alone_comes_where_that_is_named(machine: Machine, uses: tuple[str, ...], wanted: list[str]) -> None:
    (machine.folder / "released").write_text("tree\nkernel\nbox\nboth\n")
    packages = "tree  # a reason\nkernel  # [vm] its own\nbox  # [ci] for a test\nboth  # [ci][vm] for either\n"
    assert machine.provision(packages, *uses).returncode == 0
    assert machine.asked() == [["update"], ["install", *wanted]]


def test_a_package_that_the_release_lacks_is_named_and_left_out(machine: Machine) -> None:
    (machine.folder / "released").write_text("tree\n")
    done = machine.provision("tree\npasst\n")
    assert done.returncode == 0
    assert machine.asked() == [["update"], ["install", "tree"]]
    assert "leaving out passt: this release does not have it\n" in done.stderr


def test_a_package_that_would_displace_one_of_the_owners_is_left_out(machine: Machine) -> None:
    (machine.folder / "released").write_text("runc\n")
    machine.apt_get(simulate="echo 'Inst runc (1.1)'; echo 'Remv containerd.io [1.7]'")
    done = machine.provision("runc\n")
    assert done.returncode == 0
    assert machine.asked() == [["update"]]
    assert "leaving out runc: it cannot be installed beside containerd.io\n" in done.stderr


def test_a_static_busybox_takes_the_place_of_the_other(machine: Machine) -> None:
    (machine.folder / "released").write_text("busybox-static\n")
    machine.apt_get(simulate="echo 'Inst busybox-static (1.35)'; echo 'Remv busybox [1.35]'")
    assert machine.provision("busybox-static\n").returncode == 0
    assert machine.asked() == [["update"], ["install", "busybox-static"]]


def test_a_package_that_cannot_be_installed_does_not_keep_the_others_out(machine: Machine) -> None:
    (machine.folder / "released").write_text("tree\nbroken\n")
    machine.apt_get(simulate='case "$*" in *broken*) exit 100 ;; esac')
    done = machine.provision("broken\ntree\n")
    assert done.returncode == 0
    assert machine.asked() == [["update"], ["install", "tree"]]
    assert "leaving out broken: it cannot be installed\n" in done.stderr


def test_a_source_out_of_reach_does_not_end_it_and_a_failed_installation_is_told(machine: Machine) -> None:
    (machine.folder / "released").write_text("tree\n")
    machine.apt_get(update=100)
    assert machine.provision("tree\n").returncode == 0
    machine.apt_get(install=100)
    assert machine.provision("tree\n").returncode != 0
    assert machine.asked() == [["update"], ["install", "tree"]] * 2


def entries(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


def test_every_package_has_its_reason() -> None:
    lines = (ROOT / "vm/packages").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"#.*|[a-z0-9][a-z0-9+.-]+ +# \S.*", line)] == []
    assert len(entries("vm/packages")) == len(set(entries("vm/packages")))


def normalised(name: str) -> str:
    """As packages are compared by name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.lower())


def test_what_the_project_needs_is_what_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    for name, needed in (("requirements", {*project["dependencies"], *optional["dev"]}), ("requirements-fuse", {*optional["fuse"]})):
        locked = {normalised(name) for name in re.findall(r"^([\w.-]+)==", (ROOT / f"{name}.lock").read_text(), re.M)}
        assert set(entries(f"{name}.in")) == needed
        assert {normalised(entry.partition(";")[0]) for entry in needed} <= locked


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-fuse.lock"])
def test_every_locked_package_has_a_version_and_hashes_and_no_place(name: str) -> None:
    text = (ROOT / name).read_text()
    entry = r"[\w.-]+(\[\w+\])?==[\w.!+-]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.sub(entry, "", text) == ""


def test_ci_runs_the_tests_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    fake = tmp_path / "lab"
    fake.write_text('#!/bin/sh\necho "$PWD $*"\nexit 3\n')
    fake.chmod(0o755)
    done = subprocess.run(["bash", tmp_path / ".ci/run"], cwd="/", env=os.environ | {"CI": "true"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, f"{tmp_path} test\n")
