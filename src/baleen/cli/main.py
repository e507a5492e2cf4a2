"""The command `baleen`: a table of verbs, loaded when they are used, and one place for errors.

Exit codes: 0 done, 1 failure, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM; verbs that pass a command's
own exit code through say so. Data goes to stdout, talk to stderr.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

import baleen
from baleen.errors import BaleenError, ConfigError, UsageError

if TYPE_CHECKING:
    from typing import Any


class Verb(NamedTuple):
    """Where a verb or group is, and what `--help` says of it without loading it."""

    module: str
    attribute: str
    help: str


VERBS = {
    "demo": Verb("baleen.cli.demo", "demo", "Kill an agent in mid-task and watch it finish."),
    "run": Verb("baleen.cli.run", "run", "Let an agent answer a question with tools."),
    "serve": Verb("baleen.cli.serve", "serve", "Serve a model to OpenAI and Anthropic clients."),
    "chat": Verb("baleen.cli.chat", "chat", "Talk to a model on the terminal."),
    "view": Verb("baleen.cli.view", "view", "Show what happened in a run."),
    "replay": Verb("baleen.cli.replay", "replay", "Show or redo what ran in a sandbox."),
    "sandbox": Verb("baleen.cli.sandbox", "sandbox", "Make, use and remove sandboxes."),
    "image": Verb("baleen.cli.image", "image", "Make, fetch and remove images of sandboxes."),
    "mcp": Verb("baleen.cli.mcp", "mcp", "Serve a sandbox's tools to an MCP client."),
    "train": Verb("baleen.cli.train", "train", "Train the small checkpoint."),
    "cost": Verb("baleen.cli.cost", "cost", "Say what cache and tokens of a model cost."),
    "convert": Verb(
        "baleen.cli.convert", "convert", "Rewrite a model folder in another number format."
    ),
    "inspect": Verb("baleen.cli.inspect", "inspect", "Say what is in a model folder."),
    "doctor": Verb("baleen.cli.doctor", "doctor", "Check what this machine can do."),
}


class LazyGroup(click.Group):
    """A group whose members are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        verb = VERBS[cmd_name]
        command = getattr(importlib.import_module(verb.module), verb.attribute)
        assert isinstance(command, click.Command), f"{verb} is not a click command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or name the one that may have been meant."""
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            from baleen.agent.config import nearest

            near = nearest(name, VERBS)
            hint = f"Did you mean {near!r}?" if near else f"There are: {', '.join(VERBS)}."
            raise click.UsageError(f"No such command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "BALEEN"},
)
@click.version_option(baleen.__version__, "-v", "--version", prog_name="baleen")
def cli() -> None:
    """DeepSeek-V4 as an agent system: the model, the protocol, the sandbox, the learning."""


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing but a bug shows a traceback."""
    arguments = sys.argv[1:] if args is None else args
    try:
        code = cli.main(arguments, prog_name="baleen", standalone_mode=False)
    except click.ClickException as error:
        return _fail(
            "usage",
            error.format_message(),
            _usage_remedy(error, arguments),
            error.exit_code,
            arguments,
        )
    except (KeyboardInterrupt, click.Abort):
        click.echo("baleen: interrupted", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away: no more words about it
        return 1
    except BaleenError as error:
        is_usage = isinstance(error, UsageError | ConfigError)
        return _fail(error.code, error.message, error.remedy, 2 if is_usage else 1, arguments)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        text = f"{place}{error.strerror or error}"
        return _fail("os", text, "check that path, its rights and its disk", 1, arguments)
    return code if isinstance(code, int) else 0


def _usage_remedy(error: click.ClickException, arguments: list[str]) -> str | None:
    if isinstance(error, click.NoSuchOption) and "--" not in arguments:
        sentence = next((text for text in arguments if text.startswith("-") and " " in text), None)
        if sentence is not None:
            return f"text that begins with a dash follows a bare --: -- {sentence!r}"
    context = getattr(error, "ctx", None)
    return f"see {context.command_path} --help" if context is not None else None


def _fail(code: str, message: str, remedy: str | None, exit_code: int, arguments: list[str]) -> int:
    if "--json" in arguments:
        report: dict[str, Any] = {"code": code, "message": message, "remedy": remedy}
        click.echo(json.dumps({"error": report}, ensure_ascii=False))
    text = f"{message} ({remedy})" if remedy else message
    click.echo(f"baleen: {text}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
