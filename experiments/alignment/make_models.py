"""`python -m experiments.alignment.make_models KIND ROOT SEED WORKERS`: the generated models, made
in a process of its own.

A launch of several processes would otherwise train them together, and not the same.
"""

import sys
from pathlib import Path

from experiments.alignment.emotion_profiles import PROFILES
from experiments.alignment.emotion_stages import prepare_models

if __name__ == "__main__":
    kind, root, seed, workers = sys.argv[1:]
    prepare_models(PROFILES[kind], Path(root), seed=int(seed), workers=int(workers))
