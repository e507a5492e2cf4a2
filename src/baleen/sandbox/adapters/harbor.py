"""A Harbor environment: trials run in boxes.

    harbor run --environment-import-path baleen.sandbox.adapters.harbor:BaleenEnvironment ...

The image is the task's ``docker_image`` (a name of the store, or pulled), or is built from
``environment/Dockerfile`` in boxes; ``FROM host`` needs no download.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from harbor.environments.base import BaseEnvironment, ExecResult
from harbor.environments.capabilities import (
    EnvironmentCapabilities,
    EnvironmentResourceCapabilities,
)
from harbor.models.task.config import NetworkMode

from ..home import Home
from ..images.dockerfile.builder import Options, build
from ..images.errors import ImageNotFoundError
from ..images.pulling import pull
from ..images.resolve import is_named
from ..images.store import Store
from ..sandbox import Sandbox
from ..spec import HARD_MAX_OUTPUT_BYTES, Allowlist

DEFAULT_CPUS, DEFAULT_MEMORY_MB, DEFAULT_STORAGE_MB = 1.0, 2048, 4096
IDLE_TTL_S = 3600.0


class BaleenEnvironment(BaseEnvironment):
    """One box of a trial."""

    _box: Sandbox | None = None

    @staticmethod
    def type() -> str:
        return "baleen"

    @property
    def capabilities(self) -> EnvironmentCapabilities:
        modes: Any = next(b for b in Sandbox.backends() if b.name == "container").capabilities
        offered = modes.get("network", ["none"])
        return EnvironmentCapabilities(
            disable_internet=True,
            network_allowlist="allowlist" in offered,
            network_allowlist_hostnames="allowlist" in offered,
        )

    @classmethod
    def resource_capabilities(cls) -> EnvironmentResourceCapabilities:
        return EnvironmentResourceCapabilities(
            cpu_limit=True, memory_limit=True, fractional_cpus=True
        )

    @property
    def _dockerfile(self) -> Path:
        return Path(self.environment_dir) / "Dockerfile"

    def _validate_definition(self) -> None:
        if not self.task_env_config.docker_image and not self._dockerfile.is_file():
            raise FileNotFoundError(f"no docker_image in task.toml and no {self._dockerfile}")

    async def start(self, force_build: bool) -> None:
        """Finds, pulls or builds the image, and makes the box."""
        image = await self._image(force_build)
        self._box = await Sandbox.create(
            image=image,
            cpu=float(self._effective_cpus or DEFAULT_CPUS),
            memory_mb=int(self._effective_memory_mb or DEFAULT_MEMORY_MB),
            disk_mb=int(self._effective_storage_mb or DEFAULT_STORAGE_MB),
            pids=1024,
            network=self._network(),
            ttl_idle_s=IDLE_TTL_S,
            job="harbor",
            labels={"session": self.session_id},
        )
        await self._run("mkdir -p /logs/agent /logs/verifier /logs/artifacts && chmod 777 /logs/*")

    def _network(self) -> str | Allowlist:
        mode = self._network_policy.network_mode
        if mode == NetworkMode.NO_NETWORK:
            return "none"
        if mode == NetworkMode.ALLOWLIST:
            hosts = self._network_policy.allowed_hosts
            return Allowlist([f"{host}:{port}" for host in hosts for port in (80, 443)])
        return "public"

    async def _image(self, force_build: bool) -> str:
        home = Home.default()
        home.prepare()
        name = self.task_env_config.docker_image
        if name and not force_build:
            if is_named(name):
                store = Store(home.images)
                try:
                    store.lookup(name)
                except ImageNotFoundError:
                    pull(store, name)
            return str(name)
        options = Options(use_cache=not force_build, network="none")
        digest = await build(
            home,
            self.environment_dir,
            dockerfile=self._dockerfile,
            options=options,
            progress=self.logger.debug,
        )
        return f"sha256:{digest}"

    async def stop(self, delete: bool) -> None:
        """Ends the box; nothing of it is kept either way."""
        if self._box is not None:
            box, self._box = self._box, None
            await box.close()

    @property
    def _living(self) -> Sandbox:
        if self._box is None:
            raise RuntimeError("the environment has not been started")
        return self._box

    async def _run(self, line: str) -> None:
        result = await self._living.shell(line, user="root", cwd="/")
        if result.exit_code != 0:
            raise RuntimeError(f"{line}: {result.stderr.decode('utf-8', 'replace')}")

    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> ExecResult:
        """Runs a line with bash; out of time it ends with 124, as `timeout` would."""
        chosen = self._resolve_user(user)
        result = await self._living.run(
            ["bash", "-c", command],
            cwd=cwd or self.task_env_config.workdir,
            env=self._merge_env(env),
            timeout_s=timeout_sec,
            user=None if chosen is None else str(chosen),
            max_output_bytes=HARD_MAX_OUTPUT_BYTES,
        )
        callback = self._output_callback()
        stderr = result.stderr.decode("utf-8", "replace")
        if callback is not None:
            await callback(result.text, "stdout")
            await callback(stderr, "stderr")
        return ExecResult(stdout=result.text, stderr=stderr, return_code=result.exit_code)

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        await self._living.files.upload(source_path, target_path)

    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        await self._living.files.upload(source_dir, target_dir)

    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        target = Path(target_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        await self._living.files.download(source_path, target)

    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        """Copies a folder over what is there; the box's files replace the host's."""
        target = Path(target_dir)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            fetched = Path(folder, "fetched")
            await self._living.files.download(source_dir, fetched)
            shutil.copytree(fetched, target, dirs_exist_ok=True)
