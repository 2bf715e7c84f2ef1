"""`python -m syncd`: the daemon. `python -m syncd run SCRIPT`: a script with syncd's semaphores.
"""

import os
import runpy
import sys
import types
from typing import List, NoReturn

_USAGE = "usage: python -m syncd run SCRIPT [ARGUMENT ...] | run -m MODULE [ARGUMENT ...]"


def main() -> NoReturn:
    """Runs the command."""
    if sys.argv[1:2] == ["run"]:
        _run(sys.argv[2:])
        sys.exit(0)
    from ._native import daemon

    daemon(["syncd", *sys.argv[1:]])
    raise AssertionError("the daemon exits by itself")


def _run(arguments: List[str]) -> None:
    if not arguments or arguments == ["-m"]:
        sys.exit(_USAGE)
    from ._install import install

    install(force=True)
    # For interpreters that this one or its children start without multiprocessing.
    os.environ["SYNCD_INSTALL"] = "force"
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    script = arguments[0]
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    # Not runpy.run_path, which removes its module before multiprocessing's exit handlers run.
    main_module = types.ModuleType("__main__")
    main_module.__file__ = script
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main_module
    with open(script, "rb") as file:
        code = compile(file.read(), script, "exec")
    exec(code, vars(main_module))


if __name__ == "__main__":
    main()
