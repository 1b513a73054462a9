"""A federation on real devices: a home on the server, a bundle on each device, and what keeps both running.

``provision`` makes a home and one bundle per device. ``server`` and ``client`` start Flower's processes from them,
watch over them and stop them; ``proxy`` is all of the server that the network sees.
"""
