"""The sections of a YAML file, a module for each: keys, types, defaults, units and what they mean.

These modules do without `from __future__ import annotations`: pydantic would have to evaluate each annotation again,
which takes a tenth of the time to import `nar_scale.config`.
"""
