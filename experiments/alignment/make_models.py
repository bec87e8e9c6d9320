"""`python -m experiments.alignment.make_models KIND SOURCE SHARED SEED WORKERS`: the generated
models, made in a process of its own.

A launch of several processes would otherwise train them together, and not the same.
"""

import sys
from pathlib import Path

from experiments.alignment.emotion_stages import prepare_models
from experiments.alignment.models import generated

if __name__ == "__main__":
    kind, source, shared, seed, workers = sys.argv[1:]
    prepare_models(generated(kind, source), Path(shared), seed=int(seed), workers=int(workers))
