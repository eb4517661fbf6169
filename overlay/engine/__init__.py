"""The data plane: one thread, one epoll loop, TUN and UDP. The rest of the program talks to it in `api`'s values."""

from overlay.engine.engine import Engine
from overlay.engine.features import Features

__all__ = ["Engine", "Features"]
