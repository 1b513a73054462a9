"""A federation on real devices: a home on the server, a bundle on each device, and what keeps both running.

``provision`` makes a home and one bundle per device. ``server`` and ``client`` start Flower's processes from them,
watch over them and stop them; ``proxy`` is all of the server that the network sees.
``doctor`` asks the probes of ``probes`` what is wrong on a machine. ``observed`` reads what a run tells, ``nodes`` asks
the server who is online; ``snapshot`` puts both together, and ``status`` and ``dashboard`` show it.
"""
