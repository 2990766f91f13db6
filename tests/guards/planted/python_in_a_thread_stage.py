"""A thread stage of pure Python. expect: gil-bound, gil-bound, stage parse"""

import tournant as tn


def parse(number):
    total = 0
    for n in range(300_000):
        total += n * number  # mistake
    return total


report = tn.Pipeline(range(200)).map(parse).run()
