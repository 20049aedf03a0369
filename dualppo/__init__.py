__version__ = "0.1.0"

import sys as _sys

if _sys.platform == "win32":
    raise ImportError(
        "dualppo does not run on Windows itself, which lacks the locks that its runs need; install it in WSL "
        "(`wsl --install`), where it runs as on Linux."
    )
