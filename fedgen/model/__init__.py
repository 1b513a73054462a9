"""Loads a model and puts it to work, the whole of it or a part.

Options: ``causal_lm`` (any decoder of transformers) and ``tiny`` (random weights, for tests). What they stand on is not
an option and has no configuration of its own. ``source`` finds the files, ``shared`` has the weights in common,
``text`` is the model at work, ``packing`` lays examples side by side in few rows, ``loss`` goes from hidden states to
token losses. For parts: ``axes`` names dimensions, ``selfcheck`` doubts the names, ``part`` shrinks the modules,
``mapped`` leaves weights on the disk until they are used, ``window`` trains part of a whole, ``nested`` trains several
widths at once, ``importance`` says what matters. For bases in few bits: ``quantised`` is a matrix that is multiplied
block by block, ``int8`` makes one of integers, ``gguf_rows`` takes one out of a GGUF file as it is; ``gguf_file`` reads
such a file's table of contents, ``gguf_types`` its bytes.
"""
