"""A federation as a newcomer to Flower writes it: FedAvg over a dictionary of arrays, and devices that hand them back.

What a round of fedgen's is measured against. It knows nothing of fedgen, and trains nothing; Flower ships this file to
server and devices. When each round was over goes into the file that the run config names.
"""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

NUM_TENSORS = 20
"""As many as a transformer of two layers has."""

server = ServerApp()
client = ClientApp()


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Some rounds of FedAvg."""
    size = int(context.run_config["payload-bytes"]) // 4 // NUM_TENSORS
    arrays = ArrayRecord([np.zeros(size, dtype=np.float32) for _ in range(NUM_TENSORS)])
    num_nodes, ends = int(context.run_config["num-nodes"]), [time.time()]

    def note(number: int, arrays: ArrayRecord) -> None:
        ends.append(time.time())

    # Before the first round the strategy calls for the numbers of the initial arrays.
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=num_nodes, min_available_nodes=num_nodes)
    strategy.start(grid, arrays, num_rounds=int(context.run_config["num-rounds"]), evaluate_fn=note)
    Path(str(context.run_config["result"])).write_text(json.dumps(ends[1:]))


@client.train()
def train(message: Message, context: Context) -> Message:
    """What came goes back."""
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)
