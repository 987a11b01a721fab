"""Train a model on shards and write the best checkpoint as a model folder.

Teachers and students share one loop: the model, the streams of batches, the losses and the online
teachers are all arguments. SpeechBrain's Brain runs the steps and manages the checkpoints.

Each step seeds torch from (seed, step) and reads the batch of that step number, so a run that was killed
and resumed gives bit-identical losses to an uninterrupted one (with the same number of threads).
"""

from kdasr.training.optimisation import Optimisation
from kdasr.training.run import Training
from kdasr.training.step import Fading

__all__ = ["Fading", "Optimisation", "Training"]
