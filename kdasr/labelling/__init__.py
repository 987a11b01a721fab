"""Labelling: audio shards and a teacher in, soft-label shards out.

job            `label(...)`: finds the work, picks the engine, writes log and summary
done           which shards are labelled already, and what is wrong with the others
foreman        schedules shards and handles the death of workers
engines        crews: this process, or processes on this machine
ray_engine     a crew of Ray actors
shard_job      labels one shard: the idempotent function that every engine runs
batches        which utterances go through the teacher together
teachers       picklable descriptions of teachers
words          posteriors, given that words of a lexicon are said
audio_source   audio shards at a path or a URL
out_folder     the output folder: what labels must never replace
progress       bar, log lines, summary
selection      the most confident hours of a folder of labels
heard          the teacher's transcripts, read from its labels, and their error rate
retokenise     the teacher's transcripts as labels in a student's units
"""

from kdasr.labelling.audio_source import verify_audio
from kdasr.labelling.done import find_work
from kdasr.labelling.filters import (
    DurationLimits,
    Filter,
    Languages,
    MaxUnitRate,
    MinConfidence,
    MinSpikes,
    bound,
    own_scale,
)
from kdasr.labelling.heard import Heard, heard, heard_frames, heard_summary
from kdasr.labelling.job import ENGINES, check_job, label, sharing_ranks, verify_labels
from kdasr.labelling.planning import Prediction, compare, plan, plan_text
from kdasr.labelling.progress import summary_text
from kdasr.labelling.retokenise import Retokenised, heard_texts, retokenise
from kdasr.labelling.selection import Selection, select
from kdasr.labelling.settings import Settings, ShardResult
from kdasr.labelling.shard_job import label_shard
from kdasr.labelling.teachers import Ensemble, FolderTeacher, Teacher, TeacherSource
from kdasr.labelling.words import Words

__all__ = [
    "ENGINES",
    "DurationLimits",
    "Ensemble",
    "Filter",
    "FolderTeacher",
    "Heard",
    "Languages",
    "MaxUnitRate",
    "MinConfidence",
    "MinSpikes",
    "Prediction",
    "Retokenised",
    "Selection",
    "Settings",
    "ShardResult",
    "Teacher",
    "TeacherSource",
    "Words",
    "bound",
    "check_job",
    "compare",
    "find_work",
    "heard",
    "heard_frames",
    "heard_summary",
    "heard_texts",
    "label",
    "label_shard",
    "own_scale",
    "plan",
    "plan_text",
    "retokenise",
    "select",
    "sharing_ranks",
    "summary_text",
    "verify_audio",
    "verify_labels",
]
