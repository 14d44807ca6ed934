"""The work of `yaofang predict`: records in, a checked submission out, with a journal that survives a kill.

Every finished record is a line in a journal beside the output. The outputs are written from the journals at the end, in the
records' order, checked, and renamed into place last. Knows nothing of how a list is decoded.
"""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from transformers.utils.logging import disable_progress_bar

from yaofang.app.progress import progress
from yaofang.app.shards import Shard, joined
from yaofang.app.tables import say
from yaofang.data.journal import Journal, finished, merged
from yaofang.data.recommendation import Recommendation
from yaofang.data.records import Record, line_of, read_records
from yaofang.data.submission import check_submission, write_submission
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.settings import Settings
from yaofang.glm.loading import LoadedModel, load_model
from yaofang.vocab.conflicts import ConflictTable, load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import sha256_of, whole_file


@dataclass(frozen=True)
class Job:
    """What one `yaofang predict` was asked for."""

    records: Path
    out: Path
    models: tuple[Path, ...] = ()
    """Folders whose next-drug probabilities are averaged; none: the bundled model."""
    vocab: Path | None = None
    settings: Settings = field(default_factory=Settings)
    details: Path | None = None
    batch_size: int = 8
    resume: bool = False
    skip_bad: bool = False
    device: str = "auto"
    dtype: str = "auto"
    quantize: Literal["8bit", "4bit"] | None = None

    def check(self) -> None:
        """Raise InputError for outputs that cannot be written, would overwrite something, or a journal that is in the way."""
        places = [file.resolve() for file in (self.records, self.out, self.details) if file is not None]
        if len(set(places)) < len(places):
            raise InputError("--records, --out and --details name one file twice", way_out="Give each a file of its own.")
        for file in places[1:]:
            if not file.parent.is_dir():
                raise InputError(f"there is no folder {file.parent}", file=file, way_out="Make the folder first.")
            if file.is_dir() or not os.access(file.parent, os.W_OK):
                raise InputError("no file can be written there", file=file, way_out="Give another file name or folder.")
        if (found := self.journals()) and not self.resume:
            raise InputError(
                "an earlier run was stopped and left its journal",
                file=found[0],
                way_out="Go on from it with --resume, or delete it to start again.",
            )

    def journal(self, shard: Shard) -> Path:
        """The journal of one share of the records."""
        share = f".{shard.rank}-of-{shard.world}" if shard.world > 1 else ""
        return self.out.with_name(f"{self.out.name}.journal{share}")

    def journals(self) -> list[Path]:
        """The journals that lie beside the output, of however many shares."""
        return sorted(Path(file) for file in glob.glob(glob.escape(str(self.out)) + ".journal*"))


def run(job: Job) -> None:
    """Do the whole job, or this process's share of it under torchrun. Raises InputError for bad input."""
    with joined() as shard:
        job.check()
        shard.wait()  # nobody opens a journal before everybody has looked for old ones
        records = _read(job, shard)
        _check_bans(job, records)
        vocabulary = load_vocabulary(job.vocab)
        conflicts = load_conflicts(vocabulary)
        models = _load(job, shard)
        settings = _settings(job, models, vocabulary, conflicts)
        done = finished(job.journals(), settings)
        shard.wait()  # nobody writes to a journal before everybody has read them all
        recommender = Recommender(models, vocabulary, conflicts, job.settings)
        _predict(job, recommender, [record for record in records if shard.holds(record.id)], done, settings, shard)
        shard.wait()
        if shard.first:
            _finish(job, records, settings, vocabulary, conflicts)
        shard.wait()


def _check_bans(job: Job, records: Sequence[Record]) -> None:
    """A ban that meets no record is a misspelt 就诊标识: the drug would be prescribed all the same."""
    if unknown := sorted(set(job.settings.banned) - {record.id for record in records}):
        way_out = "Write 就诊标识 as the records have it."
        raise InputError(f"no record has 就诊标识 {unknown[0]}", file=job.records, field="--ban", way_out=way_out)


def _read(job: Job, shard: Shard) -> list[Record]:
    result = read_records(job.records, skip_bad=job.skip_bad)
    if shard.first:
        for error in result.skipped:
            say(f"skipped: {error}")
    return result.records


def _load(job: Job, shard: Shard) -> list[LoadedModel]:
    if not sys.stderr.isatty() or not shard.first:
        disable_progress_bar()  # transformers draws one while it loads weights, also into log files
    device = shard.device(job.device)
    loaded = [load_model(folder, device=device, dtype=job.dtype, quantize=job.quantize) for folder in job.models or (None,)]
    if shard.first:
        for model in loaded:
            say(f"model {model.name} ({model.version}): {'; '.join(model.reasons)}")
    return loaded


def _settings(job: Job, models: Sequence[LoadedModel], vocabulary: Vocabulary, conflicts: ConflictTable) -> dict[str, str]:
    """What must be the same for two runs to share a journal."""
    return {
        "records": sha256_of(job.records)[:12],
        "model": "+".join(model.version for model in models),
        "vocab": vocabulary.version,
        "conflicts": conflicts.version,
        "dtype": job.dtype,
        "quantize": job.quantize or "none",
        **{name: _short(value) for name, value in asdict(job.settings).items()},
    }


def _short(value: object) -> str:
    """A setting for the journal: itself, or a hash of a long one."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) < 40 else sha256_of(text)[:12]


def _predict(
    job: Job,
    recommender: Recommender,
    records: Sequence[Record],
    done: set[str],
    settings: dict[str, str],
    shard: Shard,
) -> None:
    """Bring every record that is not done into this share's journal: its Recommendation, or why it was skipped."""
    waiting = [record for record in records if record.id not in done]
    with (
        Journal(job.journal(shard), settings, resume=job.resume) as journal,
        progress("predict", len(records), done=len(records) - len(waiting), quiet=not shard.first) as advance,
    ):

        def skip(record: Record, error: InputError) -> None:
            placed = _placed(error, job.records, record)
            if not job.skip_bad:
                raise placed
            journal.append(record.id, {"skipped": str(placed)})
            advance(1)

        try:
            for _, found in recommender.completed(waiting, job.batch_size, skip=skip):
                journal.append(found.id, found.to_json())
                advance(1)
        finally:
            if not journal.done():  # an empty journal would only be in the way of the next attempt
                journal.path.unlink()


def _placed(error: InputError, file: Path, record: Record) -> InputError:
    """The error of one record with the place of the record in its file."""
    ways = (error.way_out, "--skip-bad leaves such records out.")
    line = line_of(file, record.id)
    return InputError(error.problem, file=file, line=line, field=error.field, way_out=" ".join(filter(None, ways)))


def _finish(
    job: Job,
    records: Sequence[Record],
    settings: dict[str, str],
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
) -> None:
    """Write the outputs in the records' order, rename the submission last, then drop the journals."""
    values = merged(job.journals(), settings, [record.id for record in records])
    kept: list[Record] = []
    found: list[Recommendation] = []
    for record, value in zip(records, values, strict=True):
        if "skipped" in value:
            say(f"skipped: {value['skipped']}")
        else:
            kept.append(record)
            found.append(Recommendation.from_json(value))
    _write(job, kept, found, vocabulary, conflicts)
    for journal in job.journals():
        journal.unlink()
    given = sum(any(diagnosis.source == "given" for diagnosis in one.diagnoses) for one in found)
    say(f"{job.out}: {len(found)} records, diagnoses given for {given}, generated for {len(found) - given}")


def _write(
    job: Job,
    records: Sequence[Record],
    found: Sequence[Recommendation],
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
) -> None:
    """Write details and submission; the submission takes its name last, and only if the check finds nothing."""
    if job.details is not None:
        with whole_file(job.details) as handle:
            handle.writelines(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found)
    beside = job.out.with_name(f".{job.out.name}.unchecked")
    try:
        write_submission(beside, [(one.id, one.labels) for one in found])
        if problems := check_submission(beside, records, vocabulary, conflicts):
            raise RuntimeError(f"the lists break their promise, nothing was written: {'; '.join(problems[:3])}")
        os.replace(beside, job.out)
    finally:
        beside.unlink(missing_ok=True)
