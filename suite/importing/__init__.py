"""
Sending a usage log through RecordUsageBatch: `finity usage import`.

A file is read twice, row by row. The survey (lines) counts it; the import parses each
row (layouts), gives it an event id that is the same in every run (ids) and sends
batches (sender). Correctness rests on those ids alone; the note of a broken-off run
(checkpoint) only saves time.
"""
