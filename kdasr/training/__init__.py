"""Shards, a model, losses and a schedule in; the best checkpoint as a model folder out.

One loop for teachers and students: what is trained, on which streams of batches, with which losses
and online teachers all arrive as arguments. SpeechBrain's Brain runs the steps and keeps the
checkpoints.

Each step seeds torch from (seed, step) and reads the batch of that step number, so training that was
killed and resumed gives the same losses, to the bit, as training that was not (with as many threads).
"""

from kdasr.training.optimisation import Optimisation
from kdasr.training.run import Training
from kdasr.training.step import Fading

__all__ = ["Fading", "Optimisation", "Training"]
