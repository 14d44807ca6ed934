"""A ward of a few patients whose drugs follow from their diseases, for tests of what learns from records."""

import random

import numpy as np

from yaofang.data.records import Record
from yaofang.eval.metrics import score_record

THERAPY = {
    "2型糖尿病": ("二甲双胍", "阿卡波糖"),
    "高血压": ("氨氯地平",),
    "冠心病": ("阿司匹林肠溶片", "阿托伐他汀钙片"),
    "甲状腺功能减退": ("左甲状腺素钠片",),
    "骨质疏松": ("碳酸钙片", "阿法骨化醇"),
    "痛风": ("非布司他",),
}


def ward(patients: int, seed: int, *, first: int = 1, diagnoses: bool = True) -> list[Record]:
    """Every drug follows from a disease that the past history names, but one in eight is left out."""
    draw = random.Random(seed)
    records = []
    for patient in range(first, first + patients):
        ill = draw.sample(sorted(THERAPY), draw.randint(1, 3))
        for visit in range(1, draw.randint(1, 3) + 1):
            drugs = [drug for disease in ill for drug in THERAPY[disease] if draw.random() < 0.875]
            records.append(
                Record(
                    patient=patient,
                    id=f"{patient}-{visit}",
                    past_history=f"既往有{'、'.join(ill)}病史{draw.randint(1, 30)}年。",
                    chief_complaint=f"发现血糖升高{draw.randint(1, 99)}天",
                    diagnoses=tuple(ill) if diagnoses else (),
                    drugs=tuple(drugs) or THERAPY[ill[0]],
                )
            )
    return records


def board(predictions: list[tuple[str, list[str]]], gold: list[Record]) -> float:
    lists = dict(predictions)
    return float(np.mean([score_record(record.drugs, lists[record.id]).jaccard for record in gold]))
