"""From a corpus to a published data set.

`plan` cuts the corpus into work items, `work_item` packs one into shards of its own, `merge` checks that all are done,
and `publish` moves their shards into place. `pipeline` has the functions for callers.
"""
