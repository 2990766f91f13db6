"""One call of native code that never gives the interpreter lock away, in a stage. expect: blocked-loop, cpu, stage check"""

import re

import tournant as tn


async def check(text):
    return re.match(r"(a+)+$", text) is not None  # mistake


report = tn.Pipeline(["a" * 24 + "b", "a"]).map(check).run()
