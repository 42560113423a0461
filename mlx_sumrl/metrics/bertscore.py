"""BERTScore (Zhang et al. 2020, arXiv:1904.09675) with an encoder of one's own, as the ``bert-score`` package computes
it: token vectors of one layer, each matched with the nearest of the other text.

That package needs torch; this needs an encoder's folder and MLX. Without baseline rescaling, so values of an encoder
lie close together (0.8 to 1 for RoBERTa): compare systems, and not with numbers that were rescaled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.errors import UserError
from mlx_sumrl.metrics.encoder import Encoder, EncoderShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BEST_LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-multilingual-cased": 9,
    "bert-base-chinese": 8,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
    "distilroberta-base": 5,
    "xlm-roberta-base": 9,
    "xlm-roberta-large": 17,
    "scibert_scivocab_uncased": 8,
    "scibert_scivocab_cased": 9,
    "spanbert-base-cased": 8,
    "spanbert-large-cased": 17,
    "sup-simcse-roberta-large": 16,
}
"""The layer that agrees best with people (WMT16), by bert-score's table, of common encoders."""
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")


class BertScorer:
    """Precision, recall and F1 of texts against references."""

    def __init__(
        self, folder: Path | str, layer: int | None = None, *, idf: bool = False, batch_size: int = 32
    ) -> None:
        """Load the encoder of a folder: ``config.json``, ``*.safetensors``, its tokenizer.

        Args:
            folder: BERT, RoBERTa, XLM-RoBERTa or CamemBERT.
            layer: whose vectors are compared; 0 are the embeddings. None: `BEST_LAYERS` where the folder, or its
                config, has such a name; the last otherwise.
            idf: weigh tokens by their inverse document frequency in the references of each call of `score`.
            batch_size: texts encoded at once.

        Raises:
            UserError: the folder holds no such encoder, or the encoder no such layer.
        """
        folder = Path(folder).expanduser()
        shape = EncoderShape.of(folder)
        self.layer = _layer(layer, folder, shape)
        """The layer in use."""
        self.cut = 0
        """Texts so far that the encoder could not read whole."""
        self._idf = idf
        self._batch_size = batch_size
        self._encoder = Encoder(folder, shape, self.layer)
        self._tokenizer = _tokenizer(folder)
        # With RoBERTa a word at the beginning is to be as any other, and has a space before it. bert-score asks its
        # tokenizer for that, too, which listens up to version 4 of transformers and no longer does in version 5.
        self._prefix = "" if shape.kind == "bert" else " "
        self._longest = min(shape.positions, int(self._tokenizer.model_max_length))
        self._blank = self._tokenizer.num_special_tokens_to_add()

    def score(self, texts: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """Precision, recall and F1 [N, 3], at most 1; 0 for an empty text or an empty reference.

        A text longer than the encoder reads is cut there, as bert-score does, and counted in `cut`.

        Raises:
            ValueError: another number of texts than of references.
        """
        if len(texts) != len(references):
            raise ValueError(f"got {len(texts)} texts and {len(references)} references")
        different = list(dict.fromkeys([*texts, *references]))
        ids = dict(zip(different, map(self._encode, different), strict=True))
        weights = self._weights([ids[one] for one in references])
        scores_N3 = np.zeros((len(texts), 3))
        # Pairs of about the same length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda at: len(ids[texts[at]]) + len(ids[references[at]]))
        pairs = max(self._batch_size // 2, 1)
        for start in range(0, len(order), pairs):
            batch = order[start : start + pairs]
            mine, theirs = ([ids[side[at]] for at in batch] for side in (texts, references))
            vectors = self._vectors([*mine, *theirs])
            for row, at in enumerate(batch):
                if min(len(mine[row]), len(theirs[row])) <= self._blank:
                    continue
                similar_AB = vectors[row] @ vectors[len(batch) + row].T
                precision = _weighted(similar_AB.max(axis=1), [weights(one) for one in mine[row]])
                recall = _weighted(similar_AB.max(axis=0), [weights(one) for one in theirs[row]])
                total = precision + recall
                scores_N3[at] = precision, recall, 2 * precision * recall / total if total else 0.0
        return scores_N3

    def _encode(self, text: str) -> list[int]:
        stripped = text.strip()

        def encoded(longest: int) -> list[int]:
            ids = self._tokenizer.encode(
                self._prefix + stripped if stripped else "", truncation=True, max_length=longest
            )
            return list(ids)

        ids = encoded(self._longest + 1)
        if len(ids) <= self._longest:
            return ids
        self.cut += 1
        return encoded(self._longest)

    def _vectors(self, ids: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Of each text its tokens' vectors [T, D], of length 1."""
        longest = max(map(len, ids))
        padded_NT = np.zeros((len(ids), longest), dtype=np.int32)
        mask_NT = np.zeros((len(ids), longest), dtype=bool)
        for row, one in enumerate(ids):
            padded_NT[row, : len(one)] = one
            mask_NT[row, : len(one)] = True
        found = self._encoder(mx.array(padded_NT), mx.array(mask_NT))
        found_NTD = np.array(found / mx.linalg.norm(found, axis=-1, keepdims=True))
        return [found_NTD[row, : len(one)] for row, one in enumerate(ids)]

    def _weights(self, references: Sequence[Sequence[int]]) -> Callable[[int], float]:
        """Token id -> its weight; bert-score's smoothed idf, or 1 for all but the control tokens around a text."""
        if not self._idf:
            around = {self._tokenizer.cls_token_id, self._tokenizer.sep_token_id}
            return lambda token_id: float(token_id not in around)
        count = Counter(token_id for one in references for token_id in set(one))
        return lambda token_id: log((len(references) + 1) / (count[token_id] + 1))


def _weighted(values_T: NDArray[np.float32], weights: Sequence[float]) -> float:
    """The weighted mean; 0 where nothing weighs anything."""
    total = sum(weights)
    return float(values_T.astype(np.float64) @ np.asarray(weights)) / total if total else 0.0


def _layer(asked: int | None, folder: Path, shape: EncoderShape) -> int:
    if asked is None:
        names = (folder.resolve().name.lower(), shape.name.rstrip("/").rpartition("/")[2].lower())
        known = next((BEST_LAYERS[name] for name in names if name in BEST_LAYERS), shape.layers)
        return min(known, shape.layers)
    if not 0 <= asked <= shape.layers:
        raise UserError(f"the encoder in {folder} has no layer {asked}: give one from 0 to {shape.layers}")
    return asked


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer  # takes a second to import

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):  # else an empty one would be made up
        raise UserError(
            f"{folder} holds no tokenizer ({', '.join(_TOKENIZER_FILES)}); fetch the encoder's folder again, whole"
        )
    try:
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # it raises what it likes
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the tokenizer in {folder} cannot be loaded ({cause}); fetch the encoder's folder again, whole"
        ) from error
    return tokenizer
