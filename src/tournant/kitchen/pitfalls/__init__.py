"""Classic mistakes as short programs, each beside the same program mended. They are run, never imported: see `tournant.kitchen.pitfall`."""
