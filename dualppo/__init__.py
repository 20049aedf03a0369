__version__ = "0.1.0"

import sys as _sys

if _sys.platform == "win32":
    raise ImportError(
        "dualppo does not run on Windows itself, which lacks the locks that its runs need; install it in WSL "
        "(`wsl --install`), where it runs as on Linux."
    )

def load(name):
    """A policy that writes, ready to reply: a base's name, a stored policy's name or its file.

    `dualppo.load("smollm2").reply("How are you today?")`. Raises DataError for what cannot be loaded.
    """
    from .writing.stored import load_speaker

    return load_speaker(name)
