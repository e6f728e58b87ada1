"""A Debian root filesystem by mmdebstrap, from where this machine's own apt gets its packages, and so that apt works inside as it does here."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from kernel_lab.kernel.errors import UsageError

CHUNK = 1 << 18
OWN_CERTIFICATES = Path("/usr/local/share/ca-certificates")
# Not Acquire::http::Proxy-Auto-Detect and its like: a command of this machine's, which the new system lacks.
SETTINGS = re.compile(r"Acquire::(https?::Proxy|https?::Proxy::[^ ]*|Check-Valid-Until|Check-Date|Retries|ForceIPv[46]|Languages(::)?) ")


class Recipe(NamedTuple):
    """What to make: the suite, the lines for its /etc/apt/sources.list, and apt's settings."""

    suite: str
    sources: tuple[str, ...]
    settings: tuple[str, ...]

    @property
    def needs_certificates(self) -> bool:
        return any("https://" in source for source in self.sources)


class _Source(NamedTuple):
    """A source of packages as `apt-get indextargets` knows it."""

    uri: str
    release: str
    component: str
    origin: str


def own_suite() -> str:
    """The suite that this machine runs; Debian's stable one, if it runs something else than a Debian or a relative."""
    return _system().get("VERSION_CODENAME") or "stable"


def check_suite(suite: str) -> None:
    """Refuse what can be no suite's name."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", suite):
        raise UsageError(f"{suite!r}: a suite is a name such as bookworm or trixie")


def recipe(suite: str) -> Recipe:
    """How to make `suite` here."""
    needed = {"mmdebstrap": "mmdebstrap"} if os.geteuid() == 0 else {"mmdebstrap": "mmdebstrap", "newuidmap": "uidmap"}
    for program, package in needed.items():
        if not shutil.which(program):
            raise UsageError(f"{program}: not found; install Debian's package {package}")
    keys = f"/usr/share/keyrings/{_system().get('ID', 'debian')}-archive-keyring.gpg"
    return Recipe(suite, tuple(_lines(_sources(), own_suite(), suite, keys)), _settings())


def make(root: Path, what: Recipe) -> None:
    """Fill the empty directory `root`. Raises RuntimeError with what mmdebstrap or tar has said."""
    sink = [*_as_root(), "tar", "--extract", "--directory", str(root)]
    with tempfile.TemporaryFile() as messages:
        with _making(what, messages) as made:
            code = subprocess.run(sink, stdin=made, stderr=messages).returncode
            made.close()  # nobody reads on
        if code:
            raise RuntimeError(f"{shlex.join(sink)}: failed:\n{_end(messages)}")
    (root / "dev").mkdir(exist_ok=True)


def archive(what: Recipe) -> Iterator[bytes]:
    """The same as a tar archive, in chunks, with the owners that it has inside. Raises RuntimeError with what mmdebstrap has said."""
    with tempfile.TemporaryFile() as messages, _making(what, messages) as made:
        yield from iter(partial(made.read, CHUNK), b"")


def _system() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines() if os.path.exists("/etc/os-release") else []
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def _sources() -> list[_Source]:
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
    if not shutil.which("apt-get"):
        return []
    told = subprocess.run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], check=True, capture_output=True, text=True).stdout
    return [_Source(*line.split(maxsplit=3)) for line in told.splitlines() if len(line.split()) >= 4]


def _lines(sources: list[_Source], own: str, suite: str, keys: str) -> list[str]:
    """The lines for the distribution's own packages. None at all leaves the choice to mmdebstrap."""
    # Before the first `apt update` nobody knows an origin, and apt leaves the word as it is.
    known = [source for source in sources if source.origin in ("Debian", "Ubuntu", "$(ORIGIN)")]
    signed = f"[signed-by={keys}] " if os.path.exists(keys) else ""
    if suite != own:
        # Another suite need not have this one's updates, but the same mirror has it.
        known = [source._replace(release=suite) for source in known if source.release == own]
    wanted = [source for source in known if source.release in (suite, f"{suite}-updates", f"{suite}-security")]
    return [f"deb {signed}{source.uri} {source.release} {source.component}" for source in wanted]


def _settings() -> tuple[str, ...]:
    if not shutil.which("apt-config"):
        return ()
    lines = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout.splitlines()
    asked = {f"Acquire::{kind}::Proxy": os.environ.get(f"{kind}_proxy") for kind in ("http", "https")}
    by_environment = [f'{name} "{value}";' for name, value in asked.items() if value]
    own = tuple(filter(SETTINGS.match, lines))
    patience = () if any("Acquire::Retries" in line for line in own) else ('Acquire::Retries "5";',)
    return *by_environment, *own, *patience


def _mmdebstrap(what: Recipe) -> list[str]:
    command = ["mmdebstrap", "--variant=apt", f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", "--format=tar"]
    command += [f"--aptopt={setting}" for setting in what.settings]
    # The nodes in /dev: an ordinary user may make none, and a container gets its own.
    command += ["--skip=output/dev", '--customize-hook=rm -f "$1/etc/hostname"']
    if what.needs_certificates:
        command.append("--include=ca-certificates")
        if OWN_CERTIFICATES.is_dir():
            command.append(f"--customize-hook=sync-in {OWN_CERTIFICATES} {OWN_CERTIFICATES}")
        command.append('--customize-hook=chroot "$1" update-ca-certificates')
    return [*command, what.suite, "-", *what.sources]


def _as_root() -> list[str]:
    """What makes an ordinary user root over the ids that /etc/subuid grants, as `User.subordinate()` does."""
    return [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--map-auto"]


@contextmanager
def _making(what: Recipe, messages: IO[bytes]) -> Iterator[IO[bytes]]:
    """The archive, while it is being made."""
    # Not left alone when we are killed; asked and not killed, so that mmdebstrap takes away what it has mounted and unpacked.
    command = ["setpriv", "--pdeathsig", "TERM", *_mmdebstrap(what)]
    # It works as another user there, who could not walk through a directory of our user's alone; and /tmp may be small.
    place = os.environ | {"TMPDIR": "/var/tmp"}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages, start_new_session=True, env=place) as making:
        assert making.stdout
        try:
            yield making.stdout
            code = making.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(making.pid, signal.SIGTERM)
            raise
        if code:
            raise RuntimeError(f"{shlex.join(command)}: failed:\n{_end(messages)}")


def _end(messages: IO[bytes]) -> str:
    messages.seek(0)
    return messages.read().decode(errors="replace")[-4000:]
