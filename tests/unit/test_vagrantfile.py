"""The Vagrantfile, rendered for every provider: `vagrant validate` looks at those that are installed alone."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROVIDERS = ("virtualbox", "vmware_desktop", "parallels", "libvirt", "qemu", "utm")
NESTED = {
    "virtualbox": ["machine.customize", ["modifyvm", None, "--nested-hw-virt", "on"], {}],
    "vmware_desktop": ["machine.vmx.[]=", "vhv.enable", "TRUE", {}],
    "parallels": ["machine.customize", ["set", None, "--nested-virt", "on"], {}],
    "libvirt": ["machine.nested=", True, {}],
    "qemu": ["machine.cpu=", "max", {}],
}

pytestmark = pytest.mark.needs("ruby")
Settings = list[list[Any]]


def render(provider: str, processor: str = "x86_64", **environment: str) -> Settings:
    command = ["ruby", ROOT / "tests/vagrantfile.rb", ROOT / "Vagrantfile", provider, processor]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings: Settings = json.loads(done.stdout)
    return settings


def last(settings: Settings, name: str) -> Any:
    """What was assigned last: a provider's own comes after what is everybody's."""
    return next((each[1] for each in reversed(settings) if each[0] == name), None)


@pytest.mark.parametrize("processor", ["x86_64", "arm64", "aarch64"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_has_a_box_and_enough_of_a_machine(provider: str, processor: str) -> None:
    settings = render(provider, processor)
    assert last(settings, "vm.box=").split("/")[1].startswith(("debian-13", "bookworm"))
    names = [each[1] if each[0].endswith("[]=") else each[0] for each in settings]
    assert {"machine.memory=", "memsize"} & set(names)
    assert {"machine.cpus=", "machine.smp=", "numvcpus"} & set(names)


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "utm"])
def test_the_box_is_pinned_by_version(provider: str) -> None:
    assert last(render(provider), "vm.box_version=")


@pytest.mark.parametrize("provider", NESTED)
def test_nested_virtualisation_is_asked_for_where_there_is_some(provider: str) -> None:
    wanted = NESTED[provider]
    assert any(json.dumps(each).replace('"id"', "null") == json.dumps(wanted) for each in render(provider))


@pytest.mark.parametrize("provider", ["virtualbox", "vmware_desktop", "parallels"])
def test_it_is_not_asked_for_where_it_would_be_refused(provider: str) -> None:
    assert "nested" not in json.dumps(render(provider, "arm64"))
    assert "vhv" not in json.dumps(render(provider, "arm64"))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_box_of_ones_own_takes_the_place_of_the_public_one(provider: str) -> None:
    settings = render(provider, KERNEL_LAB_BOX="mine")
    assert {each[1] for each in settings if each[0] == "vm.box="} == {"mine"}
    assert last(settings, "vm.box_version=") is None


@pytest.mark.parametrize("provider", PROVIDERS)
def test_jupyterlab_answers_on_the_loopback_alone(provider: str) -> None:
    settings = render(provider, KERNEL_LAB_PORT="9999")
    (forwarded,) = [each for each in settings if each[0] == "vm.network"]
    assert forwarded[2]["host"] == 9999
    assert forwarded[2]["host_ip"] == "127.0.0.1"
    assert [each[2]["inline"] for each in settings if each[0] == "vm.provision"][-1].endswith("/serve 9999")


def test_what_the_learner_wrote_in_the_machine_stays() -> None:
    (folder,) = [each for each in render("virtualbox") if each[0] == "vm.synced_folder" and each[2] == "/kernel_lab"]
    options = folder[3]
    assert "--update" in options["rsync__args"]
    assert "--delete" not in options["rsync__args"]
    assert ".venv/" in options["rsync__exclude"]


@pytest.mark.slow
@pytest.mark.needs("vagrant")
def test_vagrant_finds_it_valid(tmp_path: Path) -> None:
    environment = os.environ | {
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    done = subprocess.run(["vagrant", "validate"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Vagrantfile validated successfully.\n"), done.stderr
