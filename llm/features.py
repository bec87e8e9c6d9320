"""Features psi(prompt, response) of real texts, from the hidden states of a language model.

The log-linear policies of arXiv:2502.01930v4 (Assumption 1) need features of each response. Here
they are the state of one layer at the response's last token, or the mean over its tokens; a
projection keeps the directions in which the two responses of a pair differ most, and sees no label:
a difference and its negative weigh the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from llm.generate import padded
from theory.policy import Array

POOLINGS = ("last", "mean")


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear map from hidden states to d features.

    mean: (h,) of the states of all responses. axes: (d, h), orthonormal. explained: the share of
    the squared differences between the responses of a pair that each axis keeps, (d,).
    """

    mean: Array
    axes: Array
    explained: Array

    def __call__(self, states: Array) -> Array:
        """States (..., h) -> features (..., d)."""
        return (states - self.mean) @ self.axes.T


def response_states(
    model: Any,
    data: Dataset,
    *,
    pad: int,
    layer: int = -1,
    pooling: str = "last",
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> Array:
    """Hidden states of both responses of each pair.

    Args:
        model: a causal language model of transformers.
        data: N pairs, as `tokenise` gives them.
        pad: id of the padding token.
        layer: 0 is the embeddings, -1 the last layer, as transformers counts `hidden_states`.
        pooling: "last" token of the response, or the "mean" over its tokens.
        batch_size: responses at once; the longest come first.
        progress: told how many responses are done.

    Returns:
        (N, 2, h) float64: chosen, rejected.

    Raises:
        ValueError: another pooling, a layer that the model has not, texts longer than its context,
            or states that are not finite, with the rows.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be {' or '.join(POOLINGS)}, got {pooling!r}.")
    layers = model.config.get_text_config().num_hidden_layers
    if not -layers - 1 <= layer <= layers:
        raise ValueError(
            f"layer must be from {-layers - 1} to {layers}: the model has {layers} layers and its"
            f" embeddings, which are number 0; got {layer}."
        )
    texts = [
        (row["prompt_ids"], row[f"{side}_ids"]) for row in data for side in ("chosen", "rejected")
    ]
    lengths = np.array([len(prompt) + len(response) for prompt, response in texts])
    _check_lengths(model, lengths, data["index"])
    order = np.argsort(-lengths, kind="stable")
    device = next(model.parameters()).device
    states: Array | None = None
    with torch.inference_mode():
        for start, rows in _batches(order, batch_size):
            ids = padded([[*texts[k][0], *texts[k][1]] for k in rows], pad).to(device)
            seen = padded([[1] * int(lengths[k]) for k in rows], 0).to(device)
            hidden = model.base_model(
                input_ids=ids, attention_mask=seen, output_hidden_states=True, use_cache=False
            ).hidden_states[layer]
            found = np.stack(
                [
                    _pooled(hidden[i, : lengths[k]], len(texts[k][1]), pooling)
                    for i, k in enumerate(rows)
                ]
            )
            if states is None:
                states = np.full((len(texts), found.shape[1]), np.nan)
            states[rows] = found
            progress(start + len(rows))
    assert states is not None
    _check_finite(states, data["index"])
    return states.reshape(len(data), 2, -1)


def fit_projection(states: Array, dimensions: int) -> Projection:
    """The directions in which the responses of a pair differ most: principal axes of the
    differences, which do not know which response was chosen.

    Args:
        states: (N, 2, h).
        dimensions: d, at most N and h.

    Returns:
        The projection.

    Raises:
        ValueError: more dimensions than pairs, than the states have, or than they differ in.

    >>> import numpy as np
    >>> from llm.features import fit_projection
    >>> states = np.zeros((3, 2, 2))
    >>> states[:, 0] = [[2.0, 0.0], [-1.0, 0.1], [3.0, -0.1]]
    >>> fit_projection(states, 1).explained.round(3).tolist()
    [0.999]
    """
    n, _, h = states.shape
    if not 1 <= dimensions <= min(n, h):
        raise ValueError(
            f"{dimensions} dimensions cannot be fitted to {n} pairs with states of {h} numbers:"
            f" choose from 1 to {min(n, h)}, and rather far fewer than there are pairs."
        )
    _, sizes, axes = np.linalg.svd(states[:, 0] - states[:, 1], full_matrices=False)
    if sizes[dimensions - 1] <= 1e-10 * sizes[0]:
        rank = int((sizes > 1e-10 * sizes[0]).sum())
        raise ValueError(
            f"the responses of a pair differ in {rank} directions only, fewer than the {dimensions}"
            " dimensions that are wanted."
        )
    axes = axes[:dimensions]
    # a sign that does not hang on the processor: the largest entry is positive
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    explained = sizes[:dimensions] ** 2 / (sizes**2).sum()
    return Projection(states.mean((0, 1)), axes, explained)


def _batches(order: np.ndarray, size: int) -> Iterator[tuple[int, Sequence[int]]]:
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}.")
    for start in range(0, len(order), size):
        yield start, order[start : start + size].tolist()


def _pooled(hidden: Any, response: int, pooling: str) -> Array:
    own = hidden[-response:].to(torch.float64 if hidden.device.type == "cpu" else torch.float32)
    return np.asarray((own[-1] if pooling == "last" else own.mean(0)).cpu(), dtype=float)


def _check_lengths(model: Any, lengths: np.ndarray, index: Sequence[int]) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or lengths.max() <= positions:
        return
    rows = sorted({index[int(k) // 2] + 1 for k in np.flatnonzero(lengths > positions)})
    raise ValueError(
        f"{len(rows)} rows ({', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''}) have"
        f" up to {lengths.max()} tokens, and the model reads {positions}: give a max_length of at"
        f" most {positions}."
    )


def _check_finite(states: Array, index: Sequence[int]) -> None:
    bad = np.flatnonzero(~np.isfinite(states).all(1))
    if not len(bad):
        return
    rows = sorted({index[int(k) // 2] + 1 for k in bad})
    raise ValueError(
        f"the model gives states that are not finite for {len(rows)} rows"
        f" ({', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''}). In half precision"
        " it may overflow: take float32. Else its weights are damaged: compare their checksum."
    )
