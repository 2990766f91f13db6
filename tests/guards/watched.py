"""Run one program under the guards, and write what they found as JSON: `python watched.py PROGRAM RESULT`.

With it goes what it had of the machine: the cores that it used, and the seconds for which its threads waited for one.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path

from tournant.guards import places
from tournant.guards.watch import watch

program, result = sys.argv[1:]


def write(found):
    cores = (time.process_time() - computed) / (time.perf_counter() - began)
    waited = 0
    for threads in Path("/proc/self/task").glob("*/schedstat"):
        waited += int(threads.read_text().split()[1]) / 1e9
    findings = [finding.as_dict() for finding in found]
    text = json.dumps({"findings": findings, "cores": cores, "waited": waited})
    Path(result + ".part").write_text(text)
    os.replace(result + ".part", result)


def report(finding):
    # Said while it hangs: the program would never come to an end.
    if finding.kind == "deadlock":
        write([finding])
        os._exit(0)


places.declare(program)
began, computed = time.perf_counter(), time.process_time()
with watch(report=report) as guards:
    main = runpy.run_path(program, run_name="__main__")
found = [*guards.findings, *(one for one in guards.notices if one.kind == "unbounded-tasks")]
# What the run itself found, with its stages.
of_run = list(main["report"].findings) if "report" in main else []
write(of_run or found)
