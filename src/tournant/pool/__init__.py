"""The workers that every run of this process shares: slots, threads and processes.

Nothing here knows of pipelines: the pool takes a chunk of values and steps, and gives back results. This file imports
nothing, because worker processes import it before their first item.
"""
