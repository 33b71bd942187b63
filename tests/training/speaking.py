"""What processes of a launch do in tests: speak, fail, or wait."""

import os
import sys
import time

rank, said = int(os.environ["RANK"]), sys.argv[1]
sys.stdout.write(f"process {rank} of {os.environ['WORLD_SIZE']}: {said}\n")
sys.stdout.flush()
if said == f"fail {rank}":
    sys.exit("Error: so it was asked")
if said.startswith(("fail", "wait")):
    time.sleep(60)
