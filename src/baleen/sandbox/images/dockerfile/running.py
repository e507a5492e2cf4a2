"""RUN: a command in a box of its own on the image of the step before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ..base import Image
from ..store import Store
from .cache import Cache
from .options import Options
from .parser import Instruction, without_marks
from .stages import State

OUTPUT_SHOWN_BYTES = 4000
PROGRAM = "/dev/shm/baleen-run"
"""Where a here-document lies that is a program: no part of what the step leaves behind."""

_PROXY_WORDS = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")

Progress = Callable[[str], None]


class Runner:
    """Runs the RUN steps of one build."""

    def __init__(self, store: Store, cache: Cache, options: Options, progress: Progress) -> None:
        self._store = store
        self._cache = cache
        self._options = options
        self._say = progress

    async def run(self, state: State, step: Instruction) -> None:
        """Runs a step; what it has written becomes the state's image.

        Raises:
            BuildError: the command failed or ran out of time; holds the end of its output.
        """
        argv = step.json_list()
        program = self._program(step)
        if argv is None:
            shell = [*state.image.config.shell, self._script(step)]
            argv = shell if program is None else [PROGRAM]
        if not any(argv):
            raise step.fail("nothing to run")
        network = {"default": self._options.network}.get(
            step.flags.get("network", "default"), step.flags.get("network", "")
        )
        if network not in ("none", "public", "host"):
            raise step.fail(f"--network={network} is not none or default")
        proxies = {k: v for k, v in self._options.build_args.items() if k in _PROXY_WORDS}
        env = {**proxies, **state.args}
        parts = [
            "RUN",
            *argv,
            program or "",
            *(f"{k}={v}" for k, v in sorted(state.args.items())),
            network,
        ]
        work = partial(self._in_box, state, step, argv, program, env, network)
        state.image = await self._cache.of(state.image, parts, work, self._say)

    @staticmethod
    def _program(step: Instruction) -> str | None:
        """A here-document alone that names its interpreter is run as a program of its own."""
        if len(step.heredocs) == 1 and not without_marks(step.rest):
            text = step.heredocs[0].text
            return text if text.startswith("#!") else None
        return None

    @staticmethod
    def _script(step: Instruction) -> str:
        """What the shell gets: here-documents follow their line, as in a script of its own."""
        if step.heredocs and not without_marks(step.rest):
            return "".join(document.text for document in step.heredocs)
        return "\n".join([step.rest, *(f"{d.text}{d.name}" for d in step.heredocs)])

    async def _in_box(
        self,
        state: State,
        step: Instruction,
        argv: Sequence[str],
        program: str | None,
        env: Mapping[str, str],
        network: str,
    ) -> Image:
        from ...sandbox import Sandbox

        options = self._options
        digest = self._store.add_image(state.image)
        box = await Sandbox.create(
            image=f"sha256:{digest}",
            cpu=options.cpu,
            memory_mb=options.memory_mb,
            disk_mb=options.disk_mb,
            pids=1024,
            network=network,
            job="image-build",
            one_off=True,
        )
        async with box:
            if program is not None:
                await box.files.write(PROGRAM, program, mode=0o755)
            result = await box.run(
                argv, env={**env, **state.image.config.env}, timeout_s=options.step_timeout_s
            )
            output = (result.stdout + result.stderr).decode("utf-8", "replace")
            if result.exit_code != 0:
                shown = output[-OUTPUT_SHOWN_BYTES:].strip()
                what = "ran out of time" if result.timed_out else f"exit code {result.exit_code}"
                raise step.fail(f"{what}: {' '.join(argv)[:200]}\n{shown}", output=output)
            for line in output.splitlines():
                self._say(f"    {line}")
            committed = self._store.image(await box.snapshot())
        return replace(state.image, layers=committed.layers)
