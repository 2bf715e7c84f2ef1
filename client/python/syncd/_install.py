"""Semaphores for a platform that has none: `_multiprocessing.SemLock`, kept by the daemon.

With it multiprocessing, concurrent.futures, joblib and others work unchanged where SemLock was
compiled out, where `_multiprocessing` is missing, and where no semaphore can be made (AWS Lambda,
containers without /dev/shm).
"""

import importlib
import os
import sys
import types
from typing import Any, List, Sequence

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Runs in each interpreter that multiprocessing starts, before multiprocessing's code.
_PRELUDE = (
    f"import sys; {_HOME!r} in sys.path or sys.path.append({_HOME!r}); "
    "from syncd import install; install(force=True); "
)


def install(*, force: bool = False) -> bool:
    """Replaces a missing or broken SemLock by syncd's, in this process and in all processes that
    multiprocessing starts from it. Returns whether syncd's SemLock is in place.

    With `force`, a working SemLock is replaced, too: then locks have owners, and a process that
    dies with a lock doesn't block the others. Call it before anything imports
    multiprocessing.synchronize.

    Raises NoDaemon if there is no daemon and none can be started.
    """
    from . import _native

    module = _module("_multiprocessing", flags={})
    if getattr(module, "SemLock", None) is _native.SemLock:
        return True
    if not force and _works():
        return False
    # Fails now, rather than at the first lock, if there is no daemon.
    _native.SemLock(1, 1, 1, f"syncd-install-{os.getpid()}", True)
    _module("_posixshmem", shm_open=_unsupported, shm_unlink=_unsupported)
    module.SemLock = _native.SemLock
    module.sem_unlink = _native.sem_unlink
    _mend()
    return True


def _works() -> bool:
    """Whether a semaphore can be made, which a SemLock class alone doesn't guarantee."""
    try:
        semlock = importlib.import_module("_multiprocessing").SemLock
        semlock(1, 1, 1, f"/syncd-probe-{os.getpid()}", True)
    except FileExistsError:
        return True
    except (ImportError, AttributeError, OSError):
        return False
    return True


def _module(name: str, **contents: object) -> Any:
    """The module, or a substitute with `contents` if there is none."""
    try:
        return importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        vars(module).update(contents)
        sys.modules[name] = module
        return module


def _unsupported(*_: object, **__: object) -> None:
    raise OSError(38, "this platform has no shared memory objects")


def _mend() -> None:
    """Patches what other modules have imported or decided already."""
    from . import _native

    synchronize: Any = importlib.import_module("multiprocessing.synchronize")
    tracker: Any = importlib.import_module("multiprocessing.resource_tracker")
    util: Any = importlib.import_module("multiprocessing.util")
    synchronize.sem_unlink = _native.sem_unlink
    tracker._CLEANUP_FUNCS["semaphore"] = _native.sem_unlink
    # The extension tells a Lock by this suffix from the semaphore of a queue for one item.
    synchronize.Lock._make_name = staticmethod(lambda: synchronize.SemLock._make_name() + "-lock")
    if not os.access("/dev/shm", os.W_OK):
        # Value and Array would fail: make them use a temporary file.
        importlib.import_module("multiprocessing.heap").Arena._dir_candidates = []
    # The limits that it checks are those of the system's semaphores.
    if "concurrent.futures.process" in sys.modules or _few_semaphores():
        futures: Any = importlib.import_module("concurrent.futures.process")
        futures._system_limits_checked, futures._system_limited = True, None
    spawnv_passfds = util.spawnv_passfds

    def spawn(path: Any, args: Sequence[Any], passfds: Any) -> int:
        command: List[Any] = list(args)
        if "-c" in command:
            at = command.index("-c") + 1
            command[at] = _PRELUDE + command[at]
        return int(spawnv_passfds(path, command, passfds))

    util.spawnv_passfds = spawn


def _few_semaphores() -> bool:
    try:
        return 0 <= os.sysconf("SC_SEM_NSEMS_MAX") < 256
    except (AttributeError, OSError, ValueError):
        return False
