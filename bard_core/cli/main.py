"""``bard``, the command line. The verbs stand in the files beside this one, a family each; what they need is imported when run.

A dotted option sets one key of the configuration that the verb reads:

    bard plan configs/bard_4b.yaml --swd.train.optimizer.lr 1e-3
"""

import re
import sys
from collections.abc import Sequence

import typer

from bard_core import known_warnings
from bard_core.cli import claims, configuration, doctor, download, generate, judge, share, stages, ui

OVERRIDE = re.compile(r"--([a-z_]\w*(?:\.\w+)+)(?:=(.*))?", re.DOTALL)

app = typer.Typer(
    name="bard",
    help="Turn an autoregressive vision-language model into a fast block-diffusion one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for family in (generate, configuration, download, stages, judge, claims, share, doctor, ui):
    family.add_to(app)


@app.callback()
def _overrides_are_for_configurations(context: typer.Context) -> None:
    if context.obj and context.invoked_subcommand not in configuration.READERS:
        verbs = ", ".join(sorted(configuration.READERS))
        raise typer.BadParameter(f"--{context.obj[0][0]}: {context.invoked_subcommand} reads no configuration; {verbs} do")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 when it failed, 2 when what it was given is at fault."""
    known_warnings.hush()
    try:
        rest, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
        app(args=rest, obj=overrides, prog_name="bard")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        if (code := _exit_code(error)) is None:
            raise
        print(error if code == 2 else f"bard: {error}", file=sys.stderr)
        return code
    return 0


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Plain arguments, and the dotted options with their values.

    Raises:
        SystemExit: the last dotted option has no value.
    """
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    waiting = iter(arguments)
    for argument in waiting:
        found = OVERRIDE.fullmatch(argument)
        if found is None:
            rest.append(argument)
            continue
        value = next(waiting, None) if found[2] is None else found[2]
        if value is None:
            print(f"{argument}: a value must follow, as in {argument} 1e-3", file=sys.stderr)
            raise SystemExit(2)
        overrides.append((found[1], value))
    return rest, overrides


def _exit_code(error: Exception) -> int | None:
    """2: the configuration is at fault. 1: a failure that says what, where and how to mend it. None: a fault of ours."""
    from bard_core.config.faults import ConfigFaultsError

    if isinstance(error, ConfigFaultsError):
        return 2
    ours = type(error).__module__.startswith("bard_core.")
    return 1 if ours or isinstance(error, OSError | ValueError | RuntimeError) else None


if __name__ == "__main__":
    sys.exit(main())
