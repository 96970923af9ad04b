"""A plugin that is broken on purpose: ddbench has to name it, and to work without it."""

raise RuntimeError("this module breaks when it is imported")
