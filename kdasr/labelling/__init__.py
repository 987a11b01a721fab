"""Labelling: audio shards and a teacher in, soft-label shards out.

job            `label(...)`: what is to do, the engines, the log, the summary
done           which shards are labelled already, and what is wrong with the others
foreman        which shard is done when, and what follows when a worker dies
engines        crews: this process, or processes of this machine
ray_engine     a crew of Ray actors
shard_job      one shard: the idempotent function that every engine runs
batches        which utterances go through the teacher together
teachers       teachers by description
words          posteriors given that words were said
audio_source   audio shards at a path or a URL
out_folder     what labels must never replace
progress       bar, log lines, summary
selection      the surest hours of a folder of labels
heard          what a teacher heard, read from its labels, and its error rate
retokenise     what the teacher heard, in a student's units
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
