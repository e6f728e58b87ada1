"""What instructions change of an image's settings, and what docker writes of them in its history (moby's builder/dockerfile, dispatchers.go)."""

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kernel_lab.images.instructions import (
    Arg,
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)

SHELL = ("/bin/sh", "-c")
NOTHING = "#(nop)"  # in the history: the shell was called for nothing, as the step runs nothing

Settings = Mapping[str, Any]


class Changed(NamedTuple):
    """Settings in the specification's words, of which None takes one away, and the step in words. author: of the image, from here on."""

    settings: Settings
    words: str
    author: str | None = None


def shell(settings: Settings) -> tuple[str, ...]:
    """What the shell form of a command is given to."""
    return tuple(settings.get("Shell") or SHELL)


def environment(settings: Settings) -> dict[str, str]:
    """The variables of an image. One without a value is none."""
    return {name: value for name, equals, value in (text.partition("=") for text in settings.get("Env") or ()) if equals}


def workdir(settings: Settings, text: str = "") -> str:
    """The working directory; with the text of a WORKDIR, the one that comes then."""
    return posixpath.normpath(posixpath.join("/", settings.get("WorkingDir") or "", text))


def in_history(words: str, settings: Settings) -> str:
    """A step that runs nothing."""
    return " ".join((*shell(settings), NOTHING, words))


def changed(instruction: Instruction, settings: Settings, has_cmd: bool = False) -> Changed:
    """By an instruction without variables. has_cmd: the stage has a CMD of its own, which an ENTRYPOINT leaves in place."""
    match instruction:
        case Env(_, pairs):
            return Changed({"Env": [f"{name}={value}" for name, value in (environment(settings) | dict(pairs)).items()]}, f"ENV {_pairs(pairs)}")
        case Arg(_, defaults):
            return Changed({}, " ".join(("ARG", *(name if default is None else f"{name}={default}" for name, default in defaults))))
        case Label(_, pairs):
            return Changed({"Labels": {**(settings.get("Labels") or {}), **dict(pairs)}}, f"LABEL {_pairs(pairs)}")
        case Cmd():
            words = instruction.words(shell(settings))
            return Changed({"Cmd": list(words) or None}, f"CMD {_quoted(words)}")
        case Entrypoint():
            words = instruction.words(shell(settings))
            # What the image below would have given to its own entrypoint is not for this one.
            return Changed({"Entrypoint": list(words) or None} | ({} if has_cmd else {"Cmd": None}), f"ENTRYPOINT {_quoted(words)}")
        case Workdir(_, text):
            path = workdir(settings, text)
            return Changed({"WorkingDir": path}, f"WORKDIR {path}")
        case User(_, text):
            return Changed({"User": text}, f"USER {text}")
        case StopSignal(_, text):
            return Changed({"StopSignal": text}, f"STOPSIGNAL {text}")
        case Shell(_, words):
            return Changed({"Shell": list(words)}, f"SHELL [{' '.join(words)}]")
        case Expose(_, ports):
            return Changed({"ExposedPorts": _with("ExposedPorts", ports, settings)}, f"EXPOSE {' '.join(ports)}")
        case Volume(_, paths):
            return Changed({"Volumes": _with("Volumes", paths, settings)}, f"VOLUME [{' '.join(paths)}]")
        case Healthcheck():
            return Changed({"Healthcheck": _health(instruction)}, f"HEALTHCHECK {json.dumps(_health(instruction))}")
        case Onbuild(_, _, expression):
            return Changed({"OnBuild": [*(settings.get("OnBuild") or ()), expression]}, f"ONBUILD {expression}")
        case Maintainer(_, text):
            return Changed({}, f"MAINTAINER {text}", text)
    raise TypeError(f"{instruction.keyword} changes more than settings")


def run_words(words: Sequence[str], arguments: Mapping[str, str]) -> str:
    """A command as the history has it: with the values of ARG that it saw, and how many these are, before it."""
    seen = [f"{name}={value}" for name, value in sorted(arguments.items())]
    return " ".join((*((f"|{len(seen)}", *seen) if seen else ()), *words))


def _with(name: str, keys: Iterable[str], settings: Settings) -> dict[str, Any]:
    return {**(settings.get(name) or {}), **{key: {} for key in keys}}


def _health(check: Healthcheck) -> dict[str, Any]:
    times = {"Interval": check.interval, "Timeout": check.timeout, "StartPeriod": check.start_period, "StartInterval": check.start_interval}
    return {"Test": list(check.test)} | {name: number for name, number in (times | {"Retries": check.retries}).items() if number}


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{name}={value}" for name, value in pairs)


def _quoted(words: Iterable[str]) -> str:
    return f"[{' '.join(json.dumps(word, ensure_ascii=False) for word in words)}]"
