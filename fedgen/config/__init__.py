"""What a config may say: which options there are, whether values fit their classes, and the Experiment it describes.

Plain values in, without Hydra: the command line, the server and the devices read configs with the same walk.
"""
