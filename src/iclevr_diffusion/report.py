"""Compare runs: ``python -m iclevr_diffusion.report outputs/cosine_eps outputs/multirun``."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from iclevr_diffusion.cli.command import DEBUG_FLAG, refuse_launcher
from iclevr_diffusion.cli.ending import ends_with_a_line
from iclevr_diffusion.cli.output_dir import output_folder, refuse_overwriting
from iclevr_diffusion.utils.closest import did_you_mean
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import expand_home, write_text
from iclevr_diffusion.utils.terminal import VERSION_FLAG, make_safe, version_line

SETTINGS = {
    "out": None,
    "title": "i-CLEVR diffusion: runs compared",
    "plugins": "",
    "wandb_run": None,
}
FILES = ("report.html", "report.md")
USAGE = (
    "python -m iclevr_diffusion.report FOLDER … [out=FOLDER] [title=TEXT] [plugins=MODULE,…]"
    " [wandb_run=RUN]"
)
HELP = """\
Compare runs: one HTML page that opens from the disk, and the same tables as Markdown.

  FOLDER …    a run, or a folder with runs anywhere below it; several are compared together
  out=FOLDER  where report.html and report.md are written; by default, a new folder in
              outputs/report. An earlier report is not overwritten
  title=TEXT  the page's heading
  plugins=…   your modules to import first, which register your metrics and schedules
  wandb_run=… a run folder, to also log the page into its W&B run; true if one run is compared

  python -m iclevr_diffusion.report outputs
  python -m iclevr_diffusion.report outputs/cosine_eps outputs/linear_eps title='Two schedules'
  python -m iclevr_diffusion.report outputs/multirun/2026-01-31_09-00-00-000000 out=comparison

Nothing in the runs is changed. Runs that differ only in the seed share a row. The scores of a run
are those from the end of its training, or of `evaluate weights=<run> out=<run>/evaluation` (with
the run's data.root=…) if you ran it. --debug shows the traceback of an error.
"""


def main() -> None:
    """Compare runs on one page."""
    make_safe()
    if VERSION_FLAG in sys.argv[1:]:
        print(version_line())
        return
    with ends_with_a_line(DEBUG_FLAG in sys.argv):
        folders, settings = parse(sys.argv[1:])
        refuse_launcher()
        refuse_overwriting(settings["out"], *FILES)
        # Here, so that --help need not wait for matplotlib.
        from iclevr_diffusion.cli.validate import import_plugin
        from iclevr_diffusion.cli.wandb_reopen import find_wandb_run, wandb_run_of
        from iclevr_diffusion.reporting.comparison import make_report
        from iclevr_diffusion.reporting.html import to_html
        from iclevr_diffusion.reporting.markdown import to_markdown
        from iclevr_diffusion.reporting.runs import read_runs

        for name in filter(None, settings["plugins"].strip("[]").split(",")):
            import_plugin(name.strip())
        runs = read_runs([expand_home(folder) for folder in folders])
        own = runs[0].folder if len(runs) == 1 else None
        wandb_run = settings["wandb_run"]
        wandb_folder = find_wandb_run(True if wandb_run == "true" else wandb_run, own)
        with output_folder(settings["out"], "outputs/report") as out:
            report = make_report(runs, settings["title"])
            page = to_html(report)
            write_text(out / "report.html", page)
            write_text(out / "report.md", to_markdown(report))
        print(report.subtitle)
        for run, problems in report.problems.items():
            print(f"  {run}: {'; '.join(problems)}")
        for name in FILES:
            print(f"  {os.path.relpath(out / name)}")
        if wandb_folder is not None:
            with wandb_run_of(wandb_folder) as logged:
                logged.log_html("report", page)


class Parser(argparse.ArgumentParser):
    """A parser that reports mistakes as the other commands do, with its own help."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists what there is")

    def format_help(self) -> str:
        return f"{USAGE}\n\n{HELP}"


def parse(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the folders, and the settings that are written as ``name=value``.

    Raises:
        UserError: No folder is named, a setting is empty or named twice, or an option is unknown.
    """
    parser = Parser(allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument(DEBUG_FLAG, action="store_true")
    folders, given = [], {}
    for word in parser.parse_args(arguments).words:
        name, is_setting, value = word.partition("=")
        if not is_setting or (name not in SETTINGS and Path(expand_home(word)).exists()):
            folders.append(word)
        elif name not in SETTINGS:
            guess = did_you_mean(name, SETTINGS)
            raise UserError(f"there is no setting {name}{guess} --help lists them")
        elif name in given:
            raise UserError(f"{name} is named twice")
        elif not value:
            raise UserError(f"{name} is empty; write {name}=…")
        else:
            given[name] = value
    if not folders:
        raise UserError("name the folders to compare, such as outputs/cosine_eps")
    return folders, SETTINGS | given


if __name__ == "__main__":
    main()
