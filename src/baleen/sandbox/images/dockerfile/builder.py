"""Runs a Dockerfile: every stage from its base, every step on the image of the step before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from baleen.errors import SandboxError, UsageError

from ...home import Home
from ..base import Image
from ..errors import ImageError, ImageNotFoundError
from ..oci import own_architecture
from ..pulling import pull
from ..store import Store
from .adding import Adder
from .cache import Cache
from .copying import Context
from .ignore import Ignore
from .metadata import METADATA
from .options import Options
from .parser import Dockerfile, Instruction, parse
from .running import Runner
from .stages import Stage, State, divide, find
from .variables import Variables

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    pass


async def build(
    home: Home,
    context: str | Path,
    name: str | None = None,
    *,
    dockerfile: str | Path | None = None,
    options: Options | None = None,
    progress: Progress = _silent,
) -> str:
    """Builds an image and names it; returns its digest.

    Args:
        home: whose store, and whose edge runs the steps.
        context: the folder that COPY and ADD read.
        name: the image's name.
        dockerfile: the file; ``Dockerfile`` in the context by default.
        options: build arguments, target and limits.
        progress: is told every step.

    Raises:
        BuildError: a step is wrong or failed; names file and line.
    """
    root = Path(context)
    path = Path(dockerfile) if dockerfile is not None else root / "Dockerfile"
    if not root.is_dir():
        raise UsageError(f"the context {root} is not a folder")
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", remedy="see -f") from None
    ignore = next(
        (
            p
            for p in (path.with_name(path.name + ".dockerignore"), root / ".dockerignore")
            if p.is_file()
        ),
        None,
    )
    rules = Ignore(ignore.read_text().splitlines() if ignore else [])
    parsed = parse(text, str(path))
    store = Store(home.images)
    builder = Builder(home, store, parsed, Context(root, rules), options or Options(), progress)
    with store.writing():
        image = await builder.run()
        return store.add_image(image, *([name] if name else []))


class Builder:
    """One build."""

    def __init__(
        self,
        home: Home,
        store: Store,
        dockerfile: Dockerfile,
        context: Context,
        options: Options,
        progress: Progress,
    ) -> None:
        self._store = store
        self._options = options
        self._say = progress
        cache = Cache(store, enabled=options.use_cache)
        self._variables = Variables(dockerfile.escape, options.build_args)
        self._runner = Runner(store, cache, options, progress)
        self._adder = Adder(home, store, context, self._variables, cache, options.limits, progress)
        before, self._stages = divide(dockerfile.instructions)
        for step in before:
            self._variables.declare(step)

    async def run(self) -> Image:
        target = self._stages[-1]
        if self._options.target is not None:
            found = find(self._stages, self._options.target)
            if found is None:
                names = ", ".join(stage.name for stage in self._stages)
                raise UsageError(f"no stage {self._options.target!r}", remedy=f"there are: {names}")
            target = found
        return await self._built(target)

    async def _built(self, stage: Stage) -> Image:
        if stage.image is None:
            state = State(await self._base(stage))
            self._say(f"{stage.start.line}: FROM {stage.start.rest}")
            triggers = state.image.config.on_build
            state.with_config(on_build=())
            for text in triggers:
                parsed = parse(f"FROM scratch\n{text}", f"ONBUILD of {stage.start.rest}")
                for step in parsed.instructions[1:]:
                    await self._step(stage, state, step)
            for step in stage.steps:
                self._say(f"{step.line}: {step.name} {step.rest}")
                await self._step(stage, state, step)
            stage.image = state.image
        return stage.image

    async def _base(self, stage: Stage) -> Image:
        step = stage.start
        name = self._variables.expand(step, step.rest.split()[0], self._variables.of_from)
        if not name:
            raise step.fail("the image's name is empty", remedy="is a build argument missing?")
        return await self._image_of(stage, step, name)

    async def _image_of(self, stage: Stage, step: Instruction, name: str) -> Image:
        """What a name in FROM or `--from` of a stage stands for: an earlier stage goes first."""
        earlier = find(self._stages[: self._stages.index(stage)], name)
        return await self._built(earlier) if earlier is not None else self._named(step, name)

    def _named(self, step: Instruction, name: str) -> Image:
        if name == "scratch":
            return Image(architecture=own_architecture())
        if name == "host":
            return Image(base="host", architecture=own_architecture())
        try:
            return self._present(name)
        except ImageNotFoundError as error:
            if not self._options.may_pull:
                raise step.fail(error.message, remedy=error.remedy) from None
        self._say(f"pulling {name}")
        try:
            pull(self._store, name, limits=self._options.limits)
            return self._present(name)
        except SandboxError as error:
            raise step.fail(str(error)) from error

    def _present(self, name: str) -> Image:
        image = self._store.image(self._store.lookup(name))
        if not all(self._store.has_layer(layer.digest) for layer in image.layers):
            raise ImageError(f"layers of {name} are gone", remedy="pull or build it again")
        return image

    async def _step(self, stage: Stage, state: State, step: Instruction) -> None:
        try:
            if step.name == "RUN":
                await self._runner.run(state, step)
            elif step.name in ("COPY", "ADD"):
                await self._adder.copy(state, step, partial(self._image_of, stage, step))
            elif step.name == "ARG":
                self._variables.take(state, step)
            elif step.name == "WORKDIR":
                self._adder.workdir(state, step)
            else:
                self._metadata(state, step)
        except (ImageError, OSError) as error:
            raise step.fail(str(error)) from error

    def _metadata(self, state: State, step: Instruction) -> None:
        make = METADATA[step.name]
        flags = self._variables.flags(step, state)
        changes = make(replace(step, flags=flags), state.image.config, self._words(state, step))
        if step.name == "ENTRYPOINT" and not state.entry_is_new:
            state.entry_is_new = True
            changes.setdefault("cmd", ())
        elif step.name == "CMD":
            state.entry_is_new = True
        state.with_config(**changes)

    def _words(self, state: State, step: Instruction) -> list[str]:
        """The words of an instruction; commands keep their variables for the shell."""
        if step.name in ("CMD", "ENTRYPOINT", "HEALTHCHECK", "SHELL", "ONBUILD"):
            return step.json_list() or []
        found = step.json_list()
        if found is not None:
            return [self._variables.expand(step, word, state.variables) for word in found]
        return self._variables.split(step, state.variables)


__all__ = ["Builder", "Options", "build"]
