"""Groups of commands whose first word may be something else: `overlay expose 3000` beside `overlay expose ls`."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class FirstWordGroup(TyperGroup):
    """What is none of its commands goes to the first that was declared, which is called what it takes: TARGET."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


class FirstWordCommand(TyperCommand):
    """That one: its own name stands for the word in the usage line."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]"]
