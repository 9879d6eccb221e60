"""A task for the pools' tests. It imports next to nothing: each of their many processes would take seconds to."""

import os
import signal
import time
from pathlib import Path

from mmrec_mrdib.errors import DataError


def task(payload):
    """What the tests run in workers."""
    match payload["do"]:
        case "square":
            return {"value": payload["x"] ** 2, "pid": os.getpid()}
        case "refuse":
            raise DataError("the data is wrong")
        case "crash":
            raise ZeroDivisionError("by zero")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "see":
            return {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid()}
        case "poison":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")
        case "leave":
            os._exit(3)
        case "once":  # is killed the first time, and goes on the second
            mark = Path(payload["mark"])
            if not mark.exists():
                mark.write_text("here")
                os.kill(os.getpid(), signal.SIGKILL)
            return {"value": "second time"}
        case "wait":
            Path(payload["mark"]).write_text(str(os.getpid()))
            time.sleep(60)
            return {}
