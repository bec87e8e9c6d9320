"""`python -m experiments.alignment.make_models KIND SOURCE BF16 SHARED SEED WORKERS`: the
generated models, made in a process of its own.

A launch of several processes would otherwise train them together, and not the same.
"""

import sys
from pathlib import Path

from experiments.alignment.emotion_stages import prepare_models
from experiments.alignment.models import generated

if __name__ == "__main__":
    kind, source, bf16, shared, seed, workers = sys.argv[1:]
    profile = generated(kind, source, bool(int(bf16)))
    prepare_models(profile, Path(shared), seed=int(seed), workers=int(workers))
