"""The verbs.

`plan`, `run` and `ttc` compose a config with Hydra; the others read files. Nothing here imports
torch.
"""

from __future__ import annotations

import os
import sys

from harness import __version__
from harness.errors import HarnessError

# type checkers take it for true; the module would take a sixth of the time of `--help`
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Verb -> module that has the function of its name. Modules are imported late, so that help is
# instant
MODULES = {
    "plan": "run",
    "run": "run",
    "ttc": "run",
    "status": "status",
    "fit": "fit",
    "ask": "ask",
    "report": "report",
    "reproduce": "reproduce",
    "export": "export",
    "doctor": "doctor",
}
USAGE = """\
usage: harness VERB [ARGUMENTS]

  plan    [+ladder=NAME] [key=value …]   what a sweep would train: N, tokens, steps, FLOP, seconds, joules, disk
  run     [+ladder=NAME] [key=value …]   train it; launching again resumes, finished runs are skipped
  ttc     [+ladder=NAME] [key=value …]   train what is missing, evaluate it with chain of thought, fit, report
  status  STUDY                          the runs of a study folder and their states
  fit     STUDY | TABLE --law LAW        fit a study's records, into fits.json, or one law to a CSV or parquet table
  ask     FITS|STUDY --flop C|--loss L   the best run for a budget, the cheapest for a loss, the runs to do --next
  report  STUDY [STUDY …]                one HTML page and figures; several studies side by side
  reproduce LADDER                       run a ladder afresh and compare it with the committed reference
  export  RUN|STUDY --format hf|parquet  a Hugging Face checkpoint, or one table row per point
  doctor                                 versions, GPUs, sensors, disk, W&B login; --sensor measures each GPU's power sensor

`harness VERB --help` says more. Examples:
  harness run +ladder=cpu
  harness run model.width=64 budget.tokens=2_000_000
  harness plan +ladder=cpu seed=0,1,2
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point.

    Exit codes: 0 done, 1 the work was not finished or differs, 2 the user's mistake, 130 stopped by
    Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"harness {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        return _verb(verb)(rest)
    except HarnessError as e:
        print(f"harness {verb}: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _verb(name: str) -> Callable[[list[str]], int]:
    if name not in MODULES:
        import difflib

        near = difflib.get_close_matches(name, MODULES, n=1)
        raise HarnessError(
            f"there is no such verb. {f'Did you mean {near[0]}? ' if near else ''}Verbs: {', '.join(MODULES)}."
        )
    import importlib

    return getattr(importlib.import_module(f"harness.cli.{MODULES[name]}"), name)


if __name__ == "__main__":
    sys.exit(main())
