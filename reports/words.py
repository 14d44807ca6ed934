"""What a reader sees in place of the JSON's keys: names, reasons for what is missing, and the definition of every figure.

Words only: no number comes from here but those of the definitions.
"""

from __future__ import annotations

from yaofang.eval.probabilities import NO_DETAILS, NO_LABELS, NO_RANKING, NO_SCORE, SOME_SCORE

NOT_STATED_BESIDE = "没有 details，诊断来源未说明；按对照系统的分组显示。"

MODES = {"given": "诊断已给出 (given)", "generated": "诊断由模型生成 (generated)", "not stated": "诊断来源未说明"}
LEVELS = {"label": "药名逐字", "generic": "通用名", "atc4": "ATC-4 类"}
SCORES = {"jaccard": "Jaccard", "f1": "F1", "board": "榜单分 (J+F1)/2", "precision": "精确率", "recall": "召回率"}
STRATA = {"head": "头部", "middle": "中部", "tail": "尾部", "unseen": "训练中未出现"}
ATTRIBUTES = {"age": "年龄", "sex": "性别", "diagnoses": "诊断数", "visits": "就诊次数", "rare_diagnosis": "含罕见诊断"}
GROUPS = {"male": "男", "female": "女", "single": "单次", "multi": "多次", "yes": "是", "no": "否", "not stated": "未说明"}
PAIRED = {**SCORES, "mean_drugs": "每条记录药数", "T1_share": "含 T1 药对的记录"}
PATIENT = {"T1": "患者禁忌的药 (T1)", "T2": "患者慎用的药 (T2)"}
KINDS = {"overall": "全部", "drug": "药物", "group": "ATC-4 类", "rest": "其余药物合并"}
LISTS = {
    "empty": "空列表",
    "repeats": "重复药名（每条记录）",
    "duplicates": "同一药物的多个药名（每条记录）",
    "outside": "词表外药名（每条记录）",
}
FILES = {
    "predictions": "提交",
    "records": "病历",
    "gold": "金标准",
    "vocab": "词表",
    "details": "details",
    "train": "训练记录",
    "counts": "训练频次",
}
SHAPES = {"submission": "竞赛提交", "csv": "CSV", "text": "自由文本", "mapping": "{就诊标识: [药名]}"}

REASONS = {
    NO_DETAILS: "没有 --details，不知道每种药的概率",
    NO_LABELS: "p_include 属于药名，而此处比较的不是药名",
    NO_SCORE: "details 中没有 p_include",
    SOME_SCORE: "details 中部分药物没有 p_include",
    NO_RANKING: "p_include 只有 0 和 1，不能排序",
}
"""Reasons that the evaluation gives, in words for a reader."""

ABSENT = "JSON 中没有这一项"
NO_INTERVAL = "患者少于 2 名，无区间"
NO_PAIRS = "没有可比药对"
NO_CHECKED = "没有可与患者核对的药"
NO_DIAGNOSES = "没有诊断的金标准"
NO_DETAILS_DIAGNOSES = "没有 details，不知道所写的诊断"
NO_RECORDS = "没有病历 (--records)"
NO_TRAINING = "没有训练记录 (--train) 或训练频次 (--counts)"
NO_GAP = "没有两个各有足够记录的组"
NO_PREDICTED = "该层没有预测"
NO_GOLD = "该层金标准中没有药"
NO_COMPARE = "没有对照提交 (--compare)"
NO_FIT = "无有限的估计"
NO_MODE = "该系统没有此类记录"
NO_CONFUSION = "JSON 中没有混淆表；比较 ATC-4 类时不计"
NO_TRUNCATION = "没有 --details，不知道是否截断"

CHIP = "CHIP 2025 任务 2；CDrugRed，arXiv 2510.21084、2511.06230"
OWN = "本项目的定义"
DEFINITIONS: tuple[tuple[str, str, str], ...] = (
    ("Jaccard", "每条记录 |y∩p|/|y∪p|，再对记录求平均；空列表得 0", CHIP),
    ("精确率、召回率", "每条记录 |y∩p|/|p| 与 |y∩p|/|y|，再对记录求平均", CHIP),
    ("F1", "每条记录 2PR/(P+R)，再对记录求平均；不是汇总计算的 F1", CHIP),
    ("榜单分", "(Jaccard + F1)/2", CHIP),
    (
        "三个层次",
        "逐字比较药名；换成通用名；换成 ATC 编码前五位（复方药与无编码药自成一类）",
        "WHO ATC/DDD index；yaofang.eval.levels",
    ),
    (
        "95% 区间",
        "按患者有放回重抽样的百分位区间，患者的各次就诊一起抽取",
        "Davison and Hinkley 1997, section 3.8；比值：Cochran 1977, section 6",
    ),
    ("诊断 F1", "同 F1，比较诊断名称；仅在诊断由模型生成时计算", OWN),
    (
        "T1、T2、T3 药对占比",
        "该级药对数/全部药对数，对记录汇总；随冲突表和列表长度而变，须与金标准的占比同看",
        "DDI rate：GAMENet (AAAI 2019)、SafeDrug (IJCAI 2021)",
    ),
    ("含 T1 药对的记录", "至少有一个 T1 药对的记录/全部记录", OWN),
    ("患者禁忌、慎用的药", "说明书表中与该患者病历所载情况相抵触的药/可核对的药，按最重一级计", "yaofang.vocab.patient"),
    ("同一药物的多个药名", "一张列表中同一通用名、同一途径的药名，除第一个外的个数", OWN),
    (
        "头部、中部、尾部",
        "按药名在训练记录中的频次排序，前 9.90% 为头部，后 10.07% 为尾部；各层汇总计算（微平均）",
        "CDrugRed，arXiv 2510.21084",
    ),
    ("亚组", "组内记录 Jaccard 的平均；最大差距只在各有至少 30 条记录的组间寻找，是事后挑选的，仅供提示", OWN),
    (
        "PRAUC",
        "每条记录按 p_include 排序的平均精度，再对有金标准的记录求平均",
        "scikit-learn average_precision_score；GAMENet、SafeDrug",
    ),
    ("Brier", "(p − 是否在列表)² 对全部“记录×药名”格求平均", "Brier 1950"),
    (
        "ECE",
        "各箱 |实际占比 − 平均概率| 按格数加权平均；箱按概率之和等分；details 不写低于 0.001 的 p，按 0 计，ECE 含此误差",
        "Naeini, Cooper and Hauskrecht 2015",
    ),
    (
        "校准斜率、截距",
        "logit P(在列表) = 截距 + 斜率·logit p；校准好时斜率 1、截距 0；总体截距：斜率固定为 1 时的截距",
        "Cox 1958；Van Calster 2016",
    ),
    ("可靠性曲线的区间", "每箱实际占比的 95% Wilson 区间，把格子视为独立", "Wilson 1927"),
    (
        "混淆",
        "同一记录中漏列的药与多列的药：先在同一通用名内、再在同一 ATC-4 类内配对；m 个漏列与 e 个多列时每对计 1/max(m,e)；"
        "其余不配对",
        "本项目的定义；yaofang.eval.confusion",
    ),
    ("配对检验", "对每名患者差值之和的符号作置换，双侧，未做多重校正", "yaofang.eval.paired"),
)
"""Name, what it is, where it comes from."""
