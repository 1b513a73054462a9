"""Seconds per draft of generator=language over one-at-a-time ``generate`` of transformers.

Both get the same prompts, temperature, top_k, top_p and longest length, and end at the first line break or special
token. They take turns in this process, order by order, on the same model and on two threads. What either spends on
prompts and tokens that it cannot use counts for both.
"""

import json
import time
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgen.generator.language import Language
    from fedgen.learner import Learner

BOUND = 1 / 3
NUM_THREADS = 2
NUM_ORDERS = 3
NUM_EXAMPLES = 2000
"""Of the plan whose first orders are timed: its orders are as large as those of a run."""


def main(as_json: bool) -> int:
    """Prints the ratio; 1 if it is above the bound."""
    from fedgen.cli.figures import report

    found = measure(NUM_ORDERS, as_json)
    ratio = found["seconds side by side"] / found["seconds one at a time"]
    figures = {"seconds per draft, of one-at-a-time generate": {"value": round(ratio, 3), "bound": BOUND}}
    return report(f"generator=language, SmolLM2-135M, {found['drafts']:.0f} drafts", figures, as_json)


def measure(num_orders: int, as_json: bool) -> dict[str, float]:
    """Seconds that both need for the drafts of the first orders, and how many drafts these are."""
    import torch

    from fedgen.config.catalogue import shipped
    from fedgen.generator.language import Language
    from fedgen.generator.prompting import to_say, token_ids
    from fedgen.model.causal_lm import CausalLM
    from fedgen.task_file import read_task

    torch.set_num_threads(NUM_THREADS)
    task = read_task(shipped("configs") / "task" / "smart_home.yaml")
    option = Language(CausalLM())
    base = option.model.load(0)
    learner = base.learner(base.replica(private=False), {})
    total = {"drafts": 0.0, "seconds side by side": 0.0, "seconds one at a time": 0.0}
    for order in option.plan(task, NUM_EXAMPLES, 0)[:num_orders]:
        prompts = to_say(task, order, option.num_demonstrations, Random(order.seed))
        ids = [token_ids(learner.tokenizer, turns) for turns in prompts]
        seconds = {"side by side": _side_by_side(learner, ids, option), "one at a time": _alone(learner, ids, option)}
        if not as_json:
            rates = {name: round(len(ids) / taken, 2) for name, taken in seconds.items()}
            print(json.dumps({"label": order.label, "drafts": len(ids), "drafts per second": rates}), flush=True)
        total["drafts"] += len(ids)
        for name, taken in seconds.items():
            total[f"seconds {name}"] += taken
    return total


def _side_by_side(learner: "Learner", prompts: list[list[int]], option: "Language") -> float:
    from fedgen.generator.sampling import Sampling, sample

    settings = Sampling(option.temperature, option.top_k, option.top_p, option.max_new_tokens)
    begin = time.perf_counter()
    sample(learner, prompts, [Random(number) for number in range(len(prompts))], settings)
    return time.perf_counter() - begin


def _alone(learner: "Learner", prompts: list[list[int]], option: "Language") -> float:
    import torch

    from fedgen.generator.sampling import special_tokens

    model: Any = learner.module
    tokenizer = learner.tokenizer
    ends = {*special_tokens(tokenizer), *(n for n in range(len(tokenizer)) if "\n" in tokenizer.decode([n]))}
    begin = time.perf_counter()
    for ids in prompts:
        asked = torch.tensor([ids])
        with torch.no_grad():
            model.generate(
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                do_sample=True,
                temperature=option.temperature,
                top_k=option.top_k,
                top_p=option.top_p,
                max_new_tokens=option.max_new_tokens,
                eos_token_id=sorted(ends),
                pad_token_id=tokenizer.eos_token_id,
            )
    return time.perf_counter() - begin
