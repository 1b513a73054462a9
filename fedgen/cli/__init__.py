"""The command line. Hydra and omegaconf live here and nowhere else.

Reading order: ``main`` (verbs), ``train`` (Hydra composes, a run starts), ``check`` (config → Experiment), ``runs``
(the life of a run), ``reports`` (its page), ``catalogue`` (which options there are), ``schema`` (what a class says
about itself, read without importing it), ``source`` (puts a class's defaults under its yaml), ``explain`` (Hydra's
errors in our words), ``progress`` (the display).
"""
