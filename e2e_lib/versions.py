"""Versions of what decides a number; raise one by hand when a change makes a command give other numbers.

Results record these versions, and a result made under another one is made again. Where code stands, and how
it is written, does not count: ``tests/test_versions.py`` holds golden values of each, and fails when numbers
change while the version does not.
"""

MINICHAT = 1  # which dialogues and photos MiniChat has
SCORING = 3  # how answers become scores
DECODING = 3  # how a chat becomes a prompt, and the model's answer text and photos
TRAINING = 2  # batches, losses and steps of joint training
INTERVALS = 2  # what follows from the scores of several runs: intervals, p-values, FID by number of photos
GRADIENTS = 1  # the bridge: maps and estimators, and how they are measured


def versions(*names: str) -> dict[str, int]:
    """The named versions, all of them by default, in lower case: ``{"minichat": 1, …}``."""
    return {name: globals()[name.upper()] for name in names
            or ("minichat", "scoring", "decoding", "training", "intervals", "gradients")}
