"""Runs a Dockerfile: every stage from its base, every step on the image of the step before."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baleen.errors import SandboxError, UsageError

from ...home import Home
from ..base import Image, LayerRef
from ..errors import ImageError, ImageNotFoundError
from ..limits import Limits
from ..oci import own_architecture
from ..pulling import pull
from ..store import Store
from ..tarball import is_tar
from ..tree import folder, make_folders, parts_of
from .cache import Cache
from .copying import (
    Context,
    Owner,
    Piece,
    archive_piece,
    owner_of,
    pieces_of_image,
    place,
    text_piece,
)
from .fetch import fetched
from .ignore import Ignore
from .metadata import METADATA
from .parser import Dockerfile, Instruction, parse, without_marks
from .view import View
from .words import WordError, expand, expand_text, split

OUTPUT_SHOWN_BYTES = 4000
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What `$PATH` stands for where an image sets none; boxes use the same."""

_PLATFORM_WORDS = ("TARGETARCH", "TARGETOS", "TARGETPLATFORM", "BUILDPLATFORM")
_PROXY_WORDS = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_FLAGS = {
    "FROM": ("platform",),
    "RUN": ("network",),
    "COPY": ("from", "chown", "chmod", "link", "parents"),
    "ADD": ("chown", "chmod", "checksum", "link"),
    "HEALTHCHECK": ("interval", "timeout", "start-period", "start-interval", "retries"),
}

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Options:
    """What a build may be told beside its Dockerfile."""

    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    """The stage to build; the last one by default."""
    use_cache: bool = True
    network: str = "none"
    """Of the boxes that RUN steps get."""
    cpu: float = 2.0
    memory_mb: int = 2048
    disk_mb: int = 8192
    step_timeout_s: float | None = None
    may_pull: bool = True
    """Bases that are not here are pulled."""
    limits: Limits = field(default_factory=Limits)


@dataclass
class Stage:
    """One FROM and what follows it; and once it is built, its image."""

    name: str
    start: Instruction
    steps: list[Instruction] = field(default_factory=list)
    image: Image | None = None


@dataclass
class _State:
    """Where a stage stands between two steps."""

    image: Image
    args: dict[str, str] = field(default_factory=dict)
    """Values of ARG, which RUN sees and the image does not keep."""
    entry_is_new: bool = False
    """ENTRYPOINT was set in this stage, so that a CMD of the base no longer holds."""

    @property
    def variables(self) -> dict[str, str]:
        return {"PATH": DEFAULT_PATH, **self.args, **self.image.config.env}

    def with_config(self, **changes: Any) -> None:
        self.image = replace(self.image, config=replace(self.image.config, **changes))


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
        self._home = home
        self._store = store
        self._escape = dockerfile.escape
        self._context = context
        self._options = options
        self._say = progress
        self._cache = Cache(store, enabled=options.use_cache)
        self._platform = self._platform_args()
        self._globals: dict[str, str] = {}
        self._stages = self._divide(dockerfile.instructions)

    def _platform_args(self) -> dict[str, str]:
        architecture = own_architecture()
        values = (architecture, "linux", f"linux/{architecture}", f"linux/{architecture}")
        return dict(zip(_PLATFORM_WORDS, values, strict=True))

    def _divide(self, instructions: Sequence[Instruction]) -> list[Stage]:
        stages: list[Stage] = []
        for step in instructions:
            unknown = set(step.flags) - set(_FLAGS.get(step.name, ()))
            if unknown:
                raise step.fail(f"--{min(unknown)} is not supported")
            if step.name == "FROM":
                words = step.rest.split()
                if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
                    raise step.fail(f"{step.rest!r} is not IMAGE [AS NAME]")
                name = words[2].lower() if len(words) == 3 else str(len(stages))
                stages.append(Stage(name, step))
            elif stages:
                stages[-1].steps.append(step)
            elif step.name == "ARG":
                self._global_arg(step)
            else:
                raise step.fail("stands before the first FROM")
        return stages

    def _global_arg(self, step: Instruction) -> None:
        for word in self._split(step, self._globals):
            name, equals, value = word.partition("=")
            if name in self._options.build_args:
                self._globals[name] = self._options.build_args[name]
            elif equals:
                self._globals[name] = value

    async def run(self) -> Image:
        target = self._stages[-1]
        if self._options.target is not None:
            found = self._stage(self._options.target, len(self._stages))
            if found is None:
                names = ", ".join(stage.name for stage in self._stages)
                raise UsageError(f"no stage {self._options.target!r}", remedy=f"there are: {names}")
            target = found
        return await self._built(target)

    def _stage(self, name: str, before: int) -> Stage | None:
        """A stage by name or number, among those that stand before another one."""
        for index, stage in reversed(list(enumerate(self._stages[:before]))):
            if name.lower() == stage.name or name == str(index):
                return stage
        return None

    async def _built(self, stage: Stage) -> Image:
        if stage.image is None:
            state = _State(await self._base(stage))
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
        name = self._expand(step, step.rest.split()[0], {**self._platform, **self._globals})
        if not name:
            raise step.fail("the image's name is empty", remedy="is a build argument missing?")
        earlier = self._stage(name, self._stages.index(stage))
        if earlier is not None:
            return await self._built(earlier)
        return self._named(step, name)

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

    async def _step(self, stage: Stage, state: _State, step: Instruction) -> None:
        try:
            if step.name == "RUN":
                await self._run_step(state, step)
            elif step.name in ("COPY", "ADD"):
                await self._copy(stage, state, step)
            elif step.name == "ARG":
                self._arg(state, step)
            elif step.name == "WORKDIR":
                self._workdir(state, step)
            else:
                self._metadata(state, step)
        except (ImageError, OSError) as error:
            raise step.fail(str(error)) from error

    def _expand(self, step: Instruction, text: str, variables: Mapping[str, str]) -> str:
        try:
            return expand(text, variables, self._escape)
        except WordError as error:
            raise step.fail(str(error)) from None

    def _split(self, step: Instruction, variables: Mapping[str, str]) -> list[str]:
        try:
            return split(step.rest, variables, self._escape)
        except WordError as error:
            raise step.fail(str(error)) from None

    def _arg(self, state: _State, step: Instruction) -> None:
        for word in self._split(step, state.variables):
            name, equals, value = word.partition("=")
            known = {**self._platform, **self._globals, **self._options.build_args}
            if name in self._options.build_args:
                value = self._options.build_args[name]
            elif not equals and name in known:
                value = known[name]
            elif not equals:
                continue
            state.args[name] = value

    def _metadata(self, state: _State, step: Instruction) -> None:
        make = METADATA[step.name]
        flags = {k: self._expand(step, v, state.variables) for k, v in step.flags.items()}
        changes = make(replace(step, flags=flags), state.image.config, self._words(state, step))
        if step.name == "ENTRYPOINT" and not state.entry_is_new:
            state.entry_is_new = True
            changes.setdefault("cmd", ())
        elif step.name == "CMD":
            state.entry_is_new = True
        state.with_config(**changes)

    def _words(self, state: _State, step: Instruction) -> list[str]:
        """The words of an instruction; commands keep their variables for the shell."""
        if step.name in ("CMD", "ENTRYPOINT", "HEALTHCHECK", "SHELL", "ONBUILD"):
            return step.json_list() or []
        found = step.json_list()
        if found is not None:
            return [self._expand(step, word, state.variables) for word in found]
        return self._split(step, state.variables)

    def _workdir(self, state: _State, step: Instruction) -> None:
        path = self._expand(step, step.rest, state.variables)
        full = posixpath.normpath(posixpath.join("/", state.image.config.workdir, path))
        state.with_config(workdir="/" + full.lstrip("/"))
        view = View(self._store, self._home, state.image)
        real = view.real(full)
        found = view.lstat(real)
        if found is not None and not found.is_folder:
            raise step.fail(f"{full} is a file in the image")
        if found is None:
            piece = Piece(lambda _: folder(), "", True, "empty folder")
            self._add(state, view, [(real, piece)], Owner())

    async def _run_step(self, state: _State, step: Instruction) -> None:
        argv = step.json_list()
        if argv is None:
            argv = [*state.image.config.shell, self._script(step)]
        if not any(argv):
            raise step.fail("nothing to run")
        network = {"default": self._options.network}.get(
            step.flags.get("network", "default"), step.flags.get("network", "")
        )
        if network not in ("none", "public", "host"):
            raise step.fail(f"--network={network} is not none or default")
        proxies = {k: v for k, v in self._options.build_args.items() if k in _PROXY_WORDS}
        env = {**proxies, **state.args}
        parts = ["RUN", *argv, "", *(f"{k}={v}" for k, v in sorted(state.args.items())), network]
        await self._cached(state, parts, lambda: self._in_box(state, step, argv, env, network))

    def _script(self, step: Instruction) -> str:
        """What the shell gets: here-documents follow their line, as in a script of its own."""
        if step.heredocs and not without_marks(step.rest):
            return "".join(document.text for document in step.heredocs)
        return "\n".join([step.rest, *(f"{d.text}{d.name}" for d in step.heredocs)])

    async def _in_box(
        self,
        state: _State,
        step: Instruction,
        argv: Sequence[str],
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

    async def _cached(self, state: _State, parts: Sequence[str], work: Callable[[], Any]) -> None:
        """Takes a step's result from the cache, or works and keeps it."""
        key = self._cache.key(state.image, parts)
        known = self._cache.find(key)
        if known is not None:
            self._say("    from the cache")
            state.image = known
            return
        state.image = await work()
        self._cache.keep(key, state.image)

    async def _copy(self, stage: Stage, state: _State, step: Instruction) -> None:
        words = step.json_list()
        if words is None:
            rest = replace(step, rest=without_marks(step.rest)) if step.heredocs else step
            words = self._split(rest, state.variables)
        else:
            words = [self._expand(step, word, state.variables) for word in words]
        if len(words) + len(step.heredocs) < 2:
            raise step.fail("a source and a target are needed")
        flags = {k: self._expand(step, v, state.variables) for k, v in step.flags.items()}
        view = View(self._store, self._home, state.image)
        owner = owner_of(step, flags.get("chown", ""), flags.get("chmod", ""), view)
        pieces = await self._pieces(stage, state, step, words[:-1], flags)
        targets = self._targets(state, view, words[-1], pieces)
        if any(target == "" for target, _ in targets):
            raise step.fail("the target is empty")
        identity = [f"{target} {piece.identity}" for target, piece in targets]
        parts = [step.name, repr(owner), *identity]

        async def work() -> Image:
            self._add(state, view, targets, owner)
            return state.image

        await self._cached(state, parts, work)

    async def _pieces(
        self,
        stage: Stage,
        state: _State,
        step: Instruction,
        sources: Sequence[str],
        flags: Mapping[str, str],
    ) -> list[Piece]:
        found = []
        for document in step.heredocs:
            text = document.text
            if document.expand:
                text = expand_text(text, state.variables, self._escape)
            found.append(text_piece(document.name, text))
        if "from" in flags:
            image = await self._source_image(stage, step, flags["from"])
            view = View(self._store, self._home, image)
            for source in sources:
                found += pieces_of_image(step, view, image.digest, source)
            return found
        for source in sources:
            if step.name == "ADD" and source.startswith(("http://", "https://")):
                found.append(fetched(step, source, flags.get("checksum"), self._options.limits))
                continue
            for piece in self._context.pieces(step, source):
                is_archive = step.name == "ADD" and piece.local is not None and is_tar(piece.local)
                found.append(archive_piece(piece, self._options.limits) if is_archive else piece)
        return found

    async def _source_image(self, stage: Stage, step: Instruction, name: str) -> Image:
        earlier = self._stage(name, self._stages.index(stage))
        return await self._built(earlier) if earlier is not None else self._named(step, name)

    def _targets(
        self, state: _State, view: View, target: str, pieces: Sequence[Piece]
    ) -> list[tuple[str, Piece]]:
        """Where each piece goes, as an absolute path without links."""
        full = posixpath.join("/", state.image.config.workdir, target)
        clean = view.real(posixpath.normpath("/" + full.lstrip("/")))
        into = target.endswith(("/", "/.")) or target in (".", "..") or len(pieces) > 1
        into = into or view.is_folder(clean)
        found = []
        for piece in pieces:
            inside = into and not piece.is_folder
            found.append((posixpath.join(clean, piece.name) if inside else clean, piece))
        return found

    def _add(
        self, state: _State, view: View, targets: Sequence[tuple[str, Piece]], owner: Owner
    ) -> None:
        """Adds the layers that hold the pieces: one per overlay that they lie in."""
        by_place: dict[str, list[tuple[str, Piece]]] = {}
        for target, piece in targets:
            at, rest = view.place_of(target)
            by_place.setdefault(at, []).append((rest, piece))
        for at, group in by_place.items():

            def fill(writer: Any, at: str = at, group: Sequence[Any] = tuple(group)) -> Any:
                root = folder()
                self._like_below(root, view, at, [rest for rest, _ in group])
                for rest, piece in group:
                    node = piece.take(writer)
                    owner.apply(node)
                    _keep_root_of(node, view, posixpath.join(at, rest))
                    place(root, rest, node)
                return root

            digest = self._store.add_layer(fill)
            layers = (*state.image.layers, LayerRef(digest, at))
            state.image = replace(state.image, layers=layers)

    def _like_below(self, root: Any, view: View, at: str, targets: Sequence[str]) -> None:
        """Gives the folders on the way the modes and owners that they have in the image."""
        base = view.lstat(at)
        if base is not None:
            root.mode, root.uid, root.gid = base.mode, base.uid, base.gid
        for target in targets:
            parts = parts_of(target.encode())
            for end in range(1, len(parts)):
                made = make_folders(root, parts[:end])
                known = view.lstat(posixpath.join(at, *(p.decode() for p in parts[:end])))
                like = known if known is not None and known.is_folder else folder()
                made.mode, made.uid, made.gid = like.mode, like.uid, like.gid


def _keep_root_of(node: Any, view: View, target: str) -> None:
    """A folder that is there already keeps its own mode and owner; its new content joins it."""
    known = view.lstat(target)
    if node.is_folder and known is not None and known.is_folder:
        node.mode, node.uid, node.gid = known.mode, known.uid, known.gid
        node.xattrs = {}
