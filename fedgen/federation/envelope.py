"""A letter as a Flower message carries it: one short record, and one array for all bytes.

Flower's cost is per object and not per byte, so a payload is one array however many tensors it has.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedgen.federation.letter import Letter

HELLO, TRAIN = "query.hello", "train"
"""Types of messages."""

LETTER, HEADER, BODY = "letter", "header", "body"
STYPE = "fedgen.raw"
"""Tells Flower that the bytes are not those of a numpy file."""


def put(letter: Letter) -> RecordDict:
    """The content of a message."""
    content = RecordDict({LETTER: ConfigRecord({HEADER: letter.header})})
    if letter.body:
        data = bytes(letter.body)
        content[BODY] = ArrayRecord({"": Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)})
    return content


def take(content: RecordDict) -> Letter:
    """The letter in a message; what is not there or not as expected is empty, and is refused where it is opened."""
    letters, bodies = content.config_records, content.array_records
    header = letters[LETTER].get(HEADER) if LETTER in letters else None
    array = bodies[BODY].get("") if BODY in bodies else None
    return Letter(header if isinstance(header, str) else "", b"" if array is None else array.data)
