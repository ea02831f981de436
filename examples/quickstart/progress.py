"""Turn fairseq's JSON log on standard input into one line now and then: updates done, loss, time left."""

import json
import re
import sys
import time


def main() -> None:
    total, begin = int(sys.argv[1]), time.monotonic()
    for line in sys.stdin:
        found = re.search(r"\| train_inner \| (\{.*\})", line)
        if found:
            stats = json.loads(found[1])
            done = int(stats["num_updates"])
            left = (time.monotonic() - begin) / done * (total - done)
            print(
                f"  {done} of {total} updates, loss {float(stats['loss']):.3f} (1 = uniform predictions), "
                f"{float(stats['datasets']):.1f} datasets an update, about {left:.0f} s left",
                flush=True,
            )


if __name__ == "__main__":
    main()
