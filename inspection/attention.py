"""What counterfactual evidence is compared with: attention weights, summed over the tokens of each piece.

weight[d, e] = sum over the tokens t of piece e of the mean over layers, heads and the tokens q of drug d's name of the
attention that q pays to t, in a prompt with the whole list behind it. Weights of this kind are
what many systems show as an explanation; they say where a model has looked and not what would change without it (Jain and
Wallace, NAACL 2019).

Knows records, labels and ids. The whole prompt is read as always; only the list is read once more, with eager attention, since
no other kind returns its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from yaofang.data.answer import clean_diagnosis, diagnosis_pieces
from yaofang.data.recommendation import Recommendation
from yaofang.data.records import Record
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.running import Run
from yaofang.glm.loading import LoadedModel
from yaofang.glm.template import ChatTemplate
from yaofang.inspection.counterfactual import Case, list_of, prepare, prompt_of
from yaofang.inspection.evidence import DIAGNOSES, Piece, pieces

Weights = npt.NDArray[np.float64]


def attention(
    recommender: Recommender,
    record: Record,
    drugs: Recommendation | Sequence[str],
    *,
    evidence: Sequence[Piece] | None = None,
) -> Weights:
    """[drugs, pieces] attention in [0, 1], the mean over the models; 0 for a piece that is not in the prompt, or is added.

    Raises InputError as `counterfactual` does.
    """
    case = prepare(recommender, record, drugs)
    asked = list(pieces(record, case.diagnoses) if evidence is None else evidence)
    ids = prompt_of(recommender, case)
    _, begins, tail = list_of(recommender.constraint, case)
    spans = [(begin, begin + len(recommender.constraint.name(drug))) for begin, drug in zip(begins, case.drugs, strict=True)]
    paid = np.mean([_paid(loaded, ids, tail, spans) for loaded in recommender.models], axis=0)
    columns = [_columns(recommender.template, case, piece) for piece in asked]
    return np.stack([paid[:, own].sum(axis=1) for own in columns], axis=1)


def _paid(loaded: LoadedModel, ids: Sequence[int], tail: Sequence[int], spans: Sequence[tuple[int, int]]) -> Weights:
    """[drugs, prompt] mean attention of each name's tokens, `spans` of the list `tail`, to every token of the prompt."""
    run = Run(loaded, [ids])
    rest = torch.tensor([list(tail)], device=loaded.device)
    own = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            output: Any = loaded.model(
                input_ids=rest,
                attention_mask=torch.ones(1, len(ids) + len(tail), device=loaded.device, dtype=torch.long),
                position_ids=torch.arange(len(ids), len(ids) + len(tail), device=loaded.device)[None],
                past_key_values=run.cache,
                output_attentions=True,
                logits_to_keep=1,
            )
    finally:
        loaded.model.set_attn_implementation(own)
    mean = torch.stack([layer[0, :, :, : len(ids)].float().mean(0) for layer in output.attentions]).mean(0).cpu()
    return torch.stack([mean[begin:end].mean(0) for begin, end in spans]).double().numpy()


def _columns(template: ChatTemplate, case: Case, piece: Piece) -> list[int]:
    """Places in the prompt's ids of the piece's tokens. A token belongs where it begins."""
    system = template.prompt_ids(case.task.prompt.messages[:-1])[:-1]
    before = len(system) + 1 + len(template.encode("\n"))
    content = template.encode(case.shown.content)
    if piece.section == DIAGNOSES:
        return [] if piece.added else _of_diagnosis(template, case, piece, before + len(content) + 1)
    spans = [
        (place + max(start, piece.start) - start, place + min(end, piece.end) - start)
        for section, start, end, place in case.shown.places()
        if section == piece.section and max(start, piece.start) < min(end, piece.end)
    ]
    begins = _begins(template, case.shown.content, content)
    return [before + at for at, begin in enumerate(begins) if any(start <= begin < end for start, end in spans)]


def _of_diagnosis(template: ChatTemplate, case: Case, piece: Piece, begin: int) -> list[int]:
    """The diagnoses are encoded piece by piece: two before the first name, a separator between names."""
    parts = diagnosis_pieces(case.diagnoses)
    sizes = [len(template.encode(part)) for part in parts]
    place = sum(bool(clean_diagnosis(name)) for name in case.diagnoses[: piece.start])
    first = begin + sum(sizes[: 2 + 2 * place])
    return list(range(first, first + sizes[2 + 2 * place]))


def _begins(template: ChatTemplate, text: str, ids: Sequence[int]) -> list[int]:
    """The character in which each token's first byte lies."""
    of_byte = [at for at, character in enumerate(text) for _ in character.encode()]
    lengths = [len(template.token_bytes[token]) for token in ids]
    starts = np.cumsum([0, *lengths[:-1]])
    return [of_byte[start] for start in starts.tolist()]
