"""Every command: ``iclevr-diffusion train …``, or ``python -m iclevr_diffusion train …``.

A command is the module of its name; ``python -m iclevr_diffusion.train`` is the same.
"""

import runpy
import sys

from iclevr_diffusion.utils.closest import did_you_mean
from iclevr_diffusion.utils.terminal import VERSION_FLAG, make_safe, version_line

COMMANDS = {
    "train": "train a diffusion model or a GAN on i-CLEVR or synthetic frames",
    "sample": "generate images of given labels",
    "evaluate": "evaluate weights: accuracy, exact match, fidelity",
    "report": "compare runs on one page",
    "app": "generate images in the browser",
    "export": "write weights for diffusers, the Hugging Face Hub, a Space or ONNX",
    "train_evaluator": "train the network that classifies images",
}
HELP_FLAGS = ("-h", "--help", "help")


def main() -> None:
    """Run the command that the first argument names."""
    make_safe()
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in HELP_FLAGS:
        print(usage())
        return
    if command == VERSION_FLAG:
        print(version_line())
        return
    name = command.replace("-", "_")
    if name not in COMMANDS:
        guess = did_you_mean(name, COMMANDS)
        print(
            f"error: there is no command {command[:60]!r}{guess} --help lists them", file=sys.stderr
        )
        sys.exit(2)
    sys.argv[1:] = arguments
    # As python -m does it: Lightning starts further processes of a training by its module's name.
    runpy.run_module(f"iclevr_diffusion.{name}", run_name="__main__", alter_sys=True)


def usage() -> str:
    """Return the list of the commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "iclevr-diffusion COMMAND [name=value …]",
            "",
            *lines,
            "",
            "iclevr-diffusion COMMAND --help lists the settings of a command; --version says the"
            " version.",
            "python -m iclevr_diffusion COMMAND does the same.",
        ]
    )


if __name__ == "__main__":
    main()
