"""What several corpora share: settings, drops, speech synthesis, noise, perturbation."""
