"""Everything that a machine can be measured for: contenders, timing, memory, profiles, results."""
