"""Control groups: how much a container may use, what it has used, and all of its processes at once (cgroups(7))."""
