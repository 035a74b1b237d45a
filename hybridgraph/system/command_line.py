"""Command lines: flags, help and mistakes, derived from the records of the settings.

Every program that measures or serves knows every flag, so that one command line can go to several. ``--help`` shows
those that change something.
"""

from __future__ import annotations

import argparse
from argparse import SUPPRESS
from collections.abc import Sequence
from typing import NoReturn

from hybridgraph.cases import Case
from hybridgraph.config import OWNERS, SETTINGS, Config, own_settings_of
from hybridgraph.errors import UserError
from hybridgraph.places import require_own
from hybridgraph.settings import MEASURING, Program, Setting

STARTING = (Program.PAIR, Program.STUDY)  # what starts other programs chooses their places and cases


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are UserError, and whose description is shown as it was written.

    Its namespace holds what was given, and no defaults.
    """

    def __init__(self, description: str | None, program: Program) -> None:
        needed = [f"{setting.flag} {setting.metavar}" for setting in SETTINGS.values() if program in setting.needed_by]
        super().__init__(
            usage=" ".join(["%(prog)s", *needed, "[FLAGS]"]),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=SUPPRESS,
            allow_abbrev=False,
        )
        self._program = program

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of ending the process."""
        raise UserError(f"{message} (--help lists every flag)")

    def add_settings(self, title: str, settings: Sequence[Setting], cases: Sequence[Case] | None = None) -> None:
        """Take the flags of ``settings``; with ``cases``, ``--help`` shows those that change something for any."""
        checked = self._program is Program.CLIENT and all(setting.opens for setting in settings)
        group = self.add_argument_group(title, "what the generator must have been opened with" if checked else None)
        for setting in settings:
            shown = cases is None or any(setting.used_by(self._program, case) for case in cases)
            if isinstance(setting.default, bool):
                _add_switch(group, setting, shown)
            else:
                group.add_argument(
                    setting.flag,
                    type=setting.parse,
                    choices=setting.choices or None,
                    metavar=setting.metavar,
                    help=f"{setting.help} ({self._usual(setting)})" if shown else SUPPRESS,
                )

    def _usual(self, setting: Setting) -> str:
        if self._program in setting.needed_by:
            return "required"
        if self._program is Program.CLIENT and setting.opens:
            return "default: the generator's"
        return f"default: {setting.unset or setting.as_text(setting.default)}"


def _add_switch(group: argparse._ArgumentGroup, setting: Setting, shown: bool) -> None:
    """Take both words of a setting that is on or off; the one that is shown says the opposite of the default."""
    for value in (True, False):
        words = setting.help if value else f"do not {setting.help}"
        group.add_argument(
            setting.argument(value),
            dest=setting.name,
            action="store_const",
            const=value,
            help=words if shown and value is not setting.default else SUPPRESS,
        )


def parse_args(
    argv: Sequence[str] | None, program: Program, cases: Sequence[Case], *, description: str | None = None
) -> Config:
    """Read the command line of ``program``, which is for ``cases``; raises UserError for anything it cannot mean."""
    parser = Parser(description, program)
    for title in dict.fromkeys(owner.GROUP for owner in OWNERS):
        owners = [owner for owner in OWNERS if title == owner.GROUP]
        parser.add_settings(title, [setting for owner in owners for setting in own_settings_of(owner)], cases)
    given = vars(parser.parse_args(argv))
    for setting in map(SETTINGS.__getitem__, given):
        if program in STARTING and program not in setting.programs and any(map(setting.concerns, cases)):
            raise UserError(f"{setting.flag}: this script chooses it itself")
    config = Config.of(**given)
    require_own(config.output_path)
    if program in MEASURING:
        config.check_requests()
    return config
