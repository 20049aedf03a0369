__version__ = "0.1.0"


def load(name):
    """A policy that writes, ready to reply: a base's name, a stored policy's name or its file.

    `dualppo.load("smollm2").reply("How are you today?")`. Raises DataError for what cannot be loaded.
    """
    from .writing.stored import load_speaker

    return load_speaker(name)
